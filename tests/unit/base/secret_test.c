// Secrets: the files, the hashes, the seal.
#include "base/secret.h"
#include "base/file.h"
#include "base/id.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#define HEX_A "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define HEX_B "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"

static int load_text(const char *text, mode_t mode, secret_ring *out, err *e) {
    char path[128];
    snprintf(path, sizeof path, "%s/text", test_dir());
    assert_int_equal(file_write_atomic(path, mode, text, strlen(text), NULL), 0);
    return secret_ring_load(test_dir(), "text", false, out, e);
}

static void a_ring_holds_one_or_two_secrets_the_newest_first(void **state) {
    (void)state;
    secret_ring ring;
    err e = {0};
    assert_int_equal(load_text("7 " HEX_A "\n\n6 " HEX_B "\r\n", 0600, &ring, &e), 0);
    assert_int_equal(ring.n, 2);
    assert_int_equal(ring.keys[0].id, 7);
    assert_int_equal(ring.keys[1].id, 6);
    assert_int_equal(ring.keys[0].key[1], 0x11);
    assert_int_equal(load_text("4294967295 " HEX_A, 0440, &ring, &e), 0);
    assert_int_equal(ring.n, 1);
}

static void a_malformed_or_open_file_is_refused_by_name_and_line(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "\n",
                                      "x " HEX_A,
                                      "0 " HEX_A,
                                      "-1 " HEX_A,
                                      "4294967296 " HEX_A,
                                      "1 " HEX_A "0",
                                      "1 00",
                                      "1  " HEX_A,
                                      "1" HEX_A,
                                      "1 " HEX_A "\n1 " HEX_B,
                                      "1 " HEX_A "\n2 " HEX_B "\n3 " HEX_A};
    secret_ring ring = {.n = 9};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = {0};
        if (load_text(bad[i], 0600, &ring, &e) == 0)
            fail_msg("was taken: %s", bad[i]);
        assert_int_equal(e.code, ERR_FORMAT);
        assert_non_null(strstr(e.message, "/text"));
        assert_null(strstr(e.message, "00112233")); // never the secret itself
    }
    err e = {0};
    assert_int_equal(load_text("1 " HEX_A, 0644, &ring, &e), -1);
    assert_non_null(strstr(e.message, "0644"));
    assert_int_equal(load_text("1 " HEX_A, 0620, &ring, &e), -1);
    assert_int_equal(secret_ring_load(test_dir(), "none", false, &ring, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_int_equal(ring.n, 9);
}

static void *load_new(void *out) {
    char dir[128];
    snprintf(dir, sizeof dir, "%s/new/secrets", test_dir());
    assert_int_equal(secret_ring_load(dir, "cluster", true, out, NULL), 0);
    return NULL;
}

static void processes_that_start_together_make_one_secret(void **state) {
    (void)state;
    secret_ring rings[8];
    pthread_t threads[8];
    struct stat s;
    char path[160];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, load_new, &rings[i]);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    for (int i = 1; i < 8; i++)
        assert_memory_equal(&rings[0].keys[0], &rings[i].keys[0], sizeof(secret));
    snprintf(path, sizeof path, "%s/new/secrets/cluster", test_dir());
    assert_int_equal(stat(path, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0600);
    assert_int_equal(s.st_nlink, 1);
}

static secret_ring two_secrets(void) {
    secret_ring ring = {.n = 2, .keys = {{.id = 2}, {.id = 1}}};
    memset(ring.keys[0].key, 2, SECRET_BYTES);
    memset(ring.keys[1].key, 1, SECRET_BYTES);
    return ring;
}

static void what_is_sealed_opens_with_the_same_secret_and_context_only(void **state) {
    (void)state;
    secret_ring ring = two_secrets(), old = {.n = 1, .keys = {ring.keys[1]}};
    buf sealed = {0}, plain = {0};
    err e = {0};
    buf_puts(&plain, "kept ");
    assert_int_equal(secret_seal(&old, "ctx", 3, "prompt", 6, &sealed, &e), 0);
    assert_int_equal(sealed.len, 4 + 12 + 6 + 16);
    assert_int_equal(secret_open(&ring, "ctx", 3, sealed.data, sealed.len, &plain, &e), 0);
    assert_string_equal(plain.data, "kept prompt");
    assert_int_equal(secret_open(&ring, "cty", 3, sealed.data, sealed.len, &plain, &e), -1);
    assert_int_equal(e.code, ERR_FORMAT);
    for (size_t i = 0; i < sealed.len; i++) {
        sealed.data[i] ^= 1;
        assert_int_equal(secret_open(&ring, "ctx", 3, sealed.data, sealed.len, &plain, &e), -1);
        sealed.data[i] ^= 1;
    }
    for (size_t n = 0; n < sealed.len; n++)
        assert_int_equal(secret_open(&ring, "ctx", 3, sealed.data, n, &plain, &e), -1);
    assert_int_equal(plain.len, strlen("kept prompt"));
    assert_string_equal(plain.data, "kept prompt");
    ring.n = 1; // only the new one
    assert_int_equal(secret_open(&ring, "ctx", 3, sealed.data, sealed.len, &plain, &e), -1);
    assert_non_null(strstr(e.message, "not known"));
    ring.n = 0;
    assert_int_equal(secret_seal(&ring, NULL, 0, "x", 1, &sealed, &e), -1);
    buf_release(&sealed);
    buf_release(&plain);
}

static void no_two_messages_share_a_nonce_and_empty_ones_are_sealed_too(void **state) {
    (void)state;
    secret_ring ring = two_secrets();
    buf a = {0}, b = {0}, plain = {0};
    assert_int_equal(secret_seal(&ring, NULL, 0, NULL, 0, &a, NULL), 0);
    assert_int_equal(secret_seal(&ring, NULL, 0, NULL, 0, &b, NULL), 0);
    assert_int_equal(a.len, 32);
    assert_memory_not_equal(a.data + 4, b.data + 4, 12);
    assert_int_equal(secret_open(&ring, NULL, 0, a.data, a.len, &plain, NULL), 0);
    assert_int_equal(plain.len, 0);
    buf_release(&a);
    buf_release(&b);
    buf_release(&plain);
}

static void hashes_are_those_of_the_standards(void **state) {
    (void)state;
    uint8_t out[32], want[32];
    secret_sha256("abc", 3, out); // FIPS 180-2, appendix B.1
    id_unhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", want, 32);
    assert_memory_equal(out, want, 32);
    secret s = {0}; // zeros behind a key do not change an HMAC, so RFC 4231's case 1 fits 32 bytes
    memset(s.key, 0x0b, 20);
    secret_hmac(&s, "Hi There", 8, out);
    id_unhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7", want, 32);
    assert_memory_equal(out, want, 32);
    assert_true(secret_equal("abc", "abd", 2));
    assert_false(secret_equal("abc", "abd", 3));
    secret_wipe(&s, sizeof s);
    assert_int_equal(s.key[0], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ring_holds_one_or_two_secrets_the_newest_first),
        cmocka_unit_test(a_malformed_or_open_file_is_refused_by_name_and_line),
        cmocka_unit_test(processes_that_start_together_make_one_secret),
        cmocka_unit_test(what_is_sealed_opens_with_the_same_secret_and_context_only),
        cmocka_unit_test(no_two_messages_share_a_nonce_and_empty_ones_are_sealed_too),
        cmocka_unit_test(hashes_are_those_of_the_standards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
