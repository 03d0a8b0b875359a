// The private CA and the server certificate made for installations that bring none.
#include "server/tls_cert.h"
#include "base/buf.h"
#include "base/file.h"
#include "server/tls.h"
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAMES "gw.example, localhost,127.0.0.1 ,::1"

static char dir[64];
static tls_cert_paths paths;

static int make_dir(void **state) {
    (void)state;
    strcpy(dir, "/tmp/tls_cert_test.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static bool ensure(const char *names) {
    bool renewed = false;
    err e = {0};
    if (tls_cert_ensure(dir, names, &paths, &renewed, &e))
        fail_msg("%s", e.message);
    return renewed;
}

static X509 *read_pem(const char *path) {
    FILE *f = fopen(path, "r");
    X509 *cert = PEM_read_X509(f, NULL, NULL, NULL);
    fclose(f);
    return cert;
}

static void read_all(const char *path, buf *out) {
    buf_clear(out);
    assert_int_equal(file_read(path, 1 << 16, out, NULL), 0);
}

static int mode_of(const char *path) {
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    return (int)(s.st_mode & 0777);
}

static void a_chain_is_made_that_clients_can_verify(void **state) {
    (void)state;
    assert_true(ensure(NAMES));
    X509 *cert = read_pem(paths.cert), *ca = read_pem(paths.ca);
    X509_STORE *store = X509_STORE_new();
    X509_STORE_add_cert(store, ca);
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    X509_STORE_CTX_init(ctx, store, cert, NULL);
    X509_STORE_CTX_set_purpose(ctx, X509_PURPOSE_SSL_SERVER);
    X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_X509_STRICT);
    assert_int_equal(X509_verify_cert(ctx), 1);
    assert_int_equal(X509_check_host(cert, "gw.example", 0, 0, NULL), 1);
    assert_int_equal(X509_check_host(cert, "localhost", 0, 0, NULL), 1);
    assert_int_equal(X509_check_ip_asc(cert, "127.0.0.1", 0), 1);
    assert_int_equal(X509_check_ip_asc(cert, "::1", 0), 1);
    assert_int_equal(X509_check_host(cert, "other.example", 0, 0, NULL), 0);
    assert_int_equal(X509_check_ca(ca), 1);
    assert_int_equal(X509_check_ca(cert), 0);
    SSL_CTX *tls = NULL;
    assert_int_equal(tls_context_new(paths.cert, paths.key, &tls, NULL), 0);
    SSL_CTX_free(tls);
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    X509_free(ca);
    X509_free(cert);
}

static void keys_are_readable_by_their_owner_only(void **state) {
    (void)state;
    char ca_key[128];
    ensure(NAMES);
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", dir);
    assert_int_equal(mode_of(ca_key), 0600);
    assert_int_equal(mode_of(paths.key), 0600);
    assert_int_equal(mode_of(paths.ca), 0644);
    assert_int_equal(mode_of(paths.cert), 0644);
}

static void a_good_certificate_is_kept(void **state) {
    (void)state;
    buf before = {0}, after = {0};
    ensure(NAMES);
    read_all(paths.cert, &before);
    assert_false(ensure(NAMES));
    read_all(paths.cert, &after);
    assert_string_equal(before.data, after.data);
    buf_release(&before);
    buf_release(&after);
}

static void changed_names_renew_the_certificate_and_keep_the_ca(void **state) {
    (void)state;
    buf before = {0}, after = {0};
    ensure(NAMES);
    read_all(paths.ca, &before);
    assert_true(ensure(NAMES ",new.example"));
    read_all(paths.ca, &after);
    assert_string_equal(before.data, after.data);
    X509 *cert = read_pem(paths.cert);
    assert_int_equal(X509_check_host(cert, "new.example", 0, 0, NULL), 1);
    X509_free(cert);
    buf_release(&before);
    buf_release(&after);
}

// The present certificate, signed again with other days left.
static void set_days_left(int days) {
    char ca_key[128];
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", dir);
    FILE *f = fopen(ca_key, "r");
    EVP_PKEY *key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
    fclose(f);
    X509 *cert = read_pem(paths.cert);
    X509_time_adj_ex(X509_getm_notAfter(cert), days, 0, NULL);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    f = fopen(paths.cert, "w");
    assert_int_equal(PEM_write_X509(f, cert), 1);
    fclose(f);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void a_certificate_near_its_end_is_renewed(void **state) {
    (void)state;
    ensure(NAMES);
    set_days_left(31);
    assert_false(ensure(NAMES));
    set_days_left(29);
    assert_true(ensure(NAMES));
    set_days_left(-1);
    assert_true(ensure(NAMES));
}

static void a_certificate_of_another_key_or_garbage_is_renewed(void **state) {
    (void)state;
    ensure(NAMES);
    assert_int_equal(unlink(paths.key), 0);
    assert_true(ensure(NAMES));
    char ca_key[128];
    buf other = {0};
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", dir);
    read_all(ca_key, &other);
    assert_int_equal(file_write_atomic(paths.key, 0600, other.data, other.len, NULL), 0);
    buf_release(&other);
    assert_true(ensure(NAMES));
    assert_int_equal(file_write_atomic(paths.cert, 0644, "junk", 4, NULL), 0);
    assert_true(ensure(NAMES));
    assert_false(ensure(NAMES));
}

static void half_a_ca_is_an_error_that_names_the_files(void **state) {
    (void)state;
    char ca_key[128];
    err e = {0};
    ensure(NAMES);
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", dir);
    assert_int_equal(unlink(ca_key), 0);
    assert_int_equal(tls_cert_ensure(dir, NAMES, &paths, NULL, &e), -1);
    assert_int_equal(e.code, ERR_FORMAT);
    assert_non_null(strstr(e.message, "ca.key"));
}

static void malformed_names_are_refused_by_name(void **state) {
    (void)state;
    static const char *const bad[] = {"",         ",",   "a b",      "a..b", "-a", ".a", "x,<y>",
                                      "a\nDNS:b", "a/b", "DNS:evil", "*",    "*.", "a;b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = {0};
        if (tls_cert_ensure(dir, bad[i], &paths, NULL, &e) == 0)
            fail_msg("\"%s\" was taken", bad[i]);
        assert_int_equal(e.code, ERR_INVALID);
        assert_string_equal(e.param, "gateway.tls_names");
    }
    assert_true(ensure("*.example.org,h"));
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_chain_is_made_that_clients_can_verify),
        TEST(keys_are_readable_by_their_owner_only),
        TEST(a_good_certificate_is_kept),
        TEST(changed_names_renew_the_certificate_and_keep_the_ca),
        TEST(a_certificate_near_its_end_is_renewed),
        TEST(a_certificate_of_another_key_or_garbage_is_renewed),
        TEST(half_a_ca_is_an_error_that_names_the_files),
        TEST(malformed_names_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
