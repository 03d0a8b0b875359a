// API keys: their text, checksum and hash, and their rows on a real PostgreSQL.
#include "auth/apikey.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, e.message);                                                  \
    } while (0)

static pg *db;
static const secret_ring one = {.n = 1, .keys = {{.id = 7, .key = {1, 2, 3}}}};

static int open_database(void **state) {
    (void)state;
    glob_t found;
    err e = {0};
    OK(pg_connect(test_postgres()->address, &db, &e));
    assert_int_equal(glob("migrations/*.sql", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        buf sql = {0};
        OK(file_read(found.gl_pathv[i], 1 << 20, &sql, &e));
        OK(pg_exec(db, sql.data, &e));
        buf_release(&sql);
    }
    globfree(&found);
    return 0;
}

static int close_database(void **state) {
    (void)state;
    pg_close(db);
    return 0;
}

static int empty(void **state) {
    (void)state;
    return pg_exec(db, "TRUNCATE api_keys, users, tenants CASCADE", NULL);
}

// ---- text

static void a_made_key_has_the_announced_form_and_is_well_formed(void **state) {
    (void)state;
    char key[APIKEY_TEXT], id[9];
    apikey_make(key);
    assert_int_equal(strlen(key), 55);
    assert_memory_equal(key, "tg_live_", 8);
    assert_int_equal(key[16], '_');
    assert_int_equal(
        strspn(key + 17, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"), 38);
    assert_true(apikey_well_formed(key, 55, id));
    assert_int_equal(strlen(id), 8);
    assert_memory_equal(id, key + 8, 8);
}

static void two_keys_differ_in_id_and_secret(void **state) {
    (void)state;
    char a[APIKEY_TEXT], b[APIKEY_TEXT];
    apikey_make(a);
    apikey_make(b);
    assert_memory_not_equal(a + 8, b + 8, 8);
    assert_memory_not_equal(a + 17, b + 17, 32);
}

static void every_change_of_one_character_is_refused(void **state) {
    (void)state;
    char key[APIKEY_TEXT], id[9];
    apikey_make(key);
    for (int i = 0; i < APIKEY_TEXT - 1; i++)
        for (int c = 0; c < 256; c++) {
            char changed[APIKEY_TEXT];
            memcpy(changed, key, sizeof changed);
            changed[i] = (char)c;
            if (changed[i] != key[i] && apikey_well_formed(changed, 55, id))
                fail_msg("byte %d as %d is taken", i, c);
        }
}

static void two_swapped_neighbours_are_refused(void **state) {
    (void)state;
    char key[APIKEY_TEXT], id[9];
    apikey_make(key);
    for (int i = 8; i < APIKEY_TEXT - 2; i++) {
        char swapped[APIKEY_TEXT];
        memcpy(swapped, key, sizeof swapped);
        swapped[i] = key[i + 1];
        swapped[i + 1] = key[i];
        if (memcmp(swapped, key, sizeof key))
            assert_false(apikey_well_formed(swapped, 55, id));
    }
}

static void another_length_is_refused(void **state) {
    (void)state;
    char key[APIKEY_TEXT + 1], id[9];
    apikey_make(key);
    key[55] = 'x';
    key[56] = 0;
    for (size_t n = 0; n <= 56; n++)
        assert_int_equal(apikey_well_formed(key, n, id), n == 55);
}

static void the_hash_is_hmac_under_the_pepper(void **state) {
    (void)state;
    char key[APIKEY_TEXT];
    uint8_t a[32], b[32];
    secret other = one.keys[0];
    other.key[31] ^= 1;
    apikey_make(key);
    apikey_hash(&one.keys[0], key, a);
    secret_hmac(&one.keys[0], key, 55, b);
    assert_memory_equal(a, b, 32);
    apikey_hash(&other, key, b);
    assert_memory_not_equal(a, b, 32);
}

// ---- rows

static int create(const char *tenant, const char *user, const char *name, char key[APIKEY_TEXT],
                  apikey_row *row, err *e) {
    return apikey_create(db, &one, tenant, user, name, 3, 3600, true, key, row, e);
}

static void the_row_holds_the_hash_and_never_the_key(void **state) {
    (void)state;
    char key[APIKEY_TEXT], hex[65];
    uint8_t digest[32];
    apikey_row row;
    err e = {0};
    pg_result *r = NULL;
    OK(create("acme", "ann", "laptop", key, &row, &e));
    OK(pg_query(db, "SELECT encode(hash, 'hex'), pepper_id, k::text FROM api_keys k", 0, NULL, &r,
                &e));
    apikey_hash(&one.keys[0], key, digest);
    id_hex(digest, 32, hex);
    assert_string_equal(pg_text(r, 0, 0), hex);
    assert_int_equal(pg_int(r, 0, 1), 7);
    assert_null(strstr(pg_text(r, 0, 2), key + 17));
    pg_result_free(r);
    assert_string_equal(row.tenant, "acme");
    assert_string_equal(row.user, "ann");
    assert_string_equal(row.name, "laptop");
    assert_string_equal(row.roles, "inference,admin");
    assert_string_not_equal(row.expires, "");
    assert_string_equal(row.revoked, "");
    assert_memory_equal(row.public_id, key + 8, 8);
}

static void the_newest_pepper_hashes(void **state) {
    (void)state;
    secret_ring two = {.n = 2, .keys = {{.id = 8, .key = {9}}, one.keys[0]}};
    char key[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    pg_result *r = NULL;
    OK(apikey_create(db, &two, "acme", "ann", "", 1, 0, true, key, &row, &e));
    OK(pg_query(db, "SELECT pepper_id, expires_at FROM api_keys", 0, NULL, &r, &e));
    assert_int_equal(pg_int(r, 0, 0), 8);
    assert_null(pg_text(r, 0, 1)); // 0 seconds: no end
    pg_result_free(r);
}

static void owners_are_made_only_on_request_and_once(void **state) {
    (void)state;
    char key[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    pg_result *r = NULL;
    assert_int_equal(apikey_create(db, &one, "acme", "ann", "", 1, 0, false, key, &row, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_string_equal(e.param, "tenant");
    OK(create("acme", "ann", "", key, &row, &e));
    OK(create("acme", "ann", "", key, &row, &e));
    assert_int_equal(apikey_create(db, &one, "acme", "bob", "", 1, 0, false, key, &row, &e), -1);
    assert_string_equal(e.param, "user");
    OK(pg_query(db, "SELECT (SELECT count(*) FROM tenants), (SELECT count(*) FROM users)", 0, NULL,
                &r, &e));
    assert_int_equal(pg_int(r, 0, 0), 1);
    assert_int_equal(pg_int(r, 0, 1), 1);
    pg_result_free(r);
}

static void names_that_cannot_be_stored_are_refused_by_field(void **state) {
    (void)state;
    static const char long_name[] =
        "0123456789012345678901234567890123456789012345678901234567890123"; // 64
    const struct {
        const char *tenant, *user, *name, *param;
    } bad[] = {
        {"", "ann", "", "tenant"},        {"Acme", "ann", "", "tenant"},
        {"-acme", "ann", "", "tenant"},   {"a b", "ann", "", "tenant"},
        {long_name, "ann", "", "tenant"}, {"acme", "", "", "user"},
        {"acme", long_name, "", "user"},  {"acme", "a\nb", "", "user"},
        {"acme", "\xff", "", "user"},     {"acme", "ann", long_name, "name"},
        {"acme", "ann", "\x7f", "name"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char key[APIKEY_TEXT];
        apikey_row row;
        err e = {0};
        assert_int_equal(create(bad[i].tenant, bad[i].user, bad[i].name, key, &row, &e), -1);
        assert_int_equal(e.code, ERR_INVALID);
        assert_string_equal(e.param, bad[i].param);
    }
    char key[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    OK(create("a.c-m_e9", "J\xc3\xbcrgen Q", "key of \xe5\xbc\xa0", key, &row, &e));
}

static void the_list_is_by_tenant_and_shows_states(void **state) {
    (void)state;
    char key[APIKEY_TEXT];
    apikey_row a, b, *rows;
    err e = {0};
    int n;
    OK(create("zeta", "ann", "", key, &a, &e));
    OK(create("acme", "bob", "", key, &b, &e));
    OK(apikey_list(db, NULL, &rows, &n, &e));
    assert_int_equal(n, 2);
    assert_string_equal(rows[0].tenant, "acme");
    assert_string_equal(rows[1].id, a.id);
    free(rows);
    OK(apikey_revoke(db, a.public_id, &e));
    OK(apikey_list(db, "zeta", &rows, &n, &e));
    assert_int_equal(n, 1);
    assert_string_not_equal(rows[0].revoked, "");
    free(rows);
    OK(apikey_list(db, "nobody", &rows, &n, &e));
    assert_int_equal(n, 0);
    free(rows);
}

static void a_key_is_revoked_by_either_id_and_keeps_its_first_time(void **state) {
    (void)state;
    char key[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    pg_result *r = NULL;
    OK(create("acme", "ann", "", key, &row, &e));
    OK(apikey_revoke(db, row.id, &e));
    OK(pg_exec(db, "UPDATE api_keys SET revoked_at = '2020-01-01'", &e));
    OK(apikey_revoke(db, row.public_id, &e));
    OK(pg_query(db, "SELECT extract(year FROM revoked_at)::int FROM api_keys", 0, NULL, &r, &e));
    assert_int_equal(pg_int(r, 0, 0), 2020);
    pg_result_free(r);
    assert_int_equal(apikey_revoke(db, "nothing1", &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
}

int main(void) {
#define ROWS(test) cmocka_unit_test_setup(test, empty)
    const struct CMUnitTest text[] = {
        cmocka_unit_test(a_made_key_has_the_announced_form_and_is_well_formed),
        cmocka_unit_test(two_keys_differ_in_id_and_secret),
        cmocka_unit_test(every_change_of_one_character_is_refused),
        cmocka_unit_test(two_swapped_neighbours_are_refused),
        cmocka_unit_test(another_length_is_refused),
        cmocka_unit_test(the_hash_is_hmac_under_the_pepper),
    };
    const struct CMUnitTest rows[] = {
        ROWS(the_row_holds_the_hash_and_never_the_key),
        ROWS(the_newest_pepper_hashes),
        ROWS(owners_are_made_only_on_request_and_once),
        ROWS(names_that_cannot_be_stored_are_refused_by_field),
        ROWS(the_list_is_by_tenant_and_shows_states),
        ROWS(a_key_is_revoked_by_either_id_and_keeps_its_first_time),
    };
    int failed = cmocka_run_group_tests(text, NULL, NULL);
    if (test_has_postgres())
        return failed + cmocka_run_group_tests(rows, open_database, close_database);
    puts("skip: PostgreSQL is not installed");
    return failed;
}
