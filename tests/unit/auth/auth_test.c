// Checking keys on a real PostgreSQL: the cache, what ends a key, and what an outage does. Each
// test has an auth of its own with a loop on the test's thread and a pool.
#include "auth/apikey.h"
#include "auth/auth.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <glob.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
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

typedef struct stage {
    config c;
    secret_ring pepper;
    loop *l;
    pool *p;
    auth *a;
    pg *db;
    char key[APIKEY_TEXT]; // of acme/ann
    apikey_row row;
} stage;

static stage s;

// ---- what auth_on_revoked heard

static pthread_mutex_t heard_lock = PTHREAD_MUTEX_INITIALIZER;
static int n_heard;
static char heard[8][ID_UUID_TEXT];

static void on_revoked(void *ctx, const char *key_id) {
    (void)ctx;
    pthread_mutex_lock(&heard_lock);
    if (n_heard < 8)
        snprintf(heard[n_heard++], ID_UUID_TEXT, "%s", key_id);
    pthread_mutex_unlock(&heard_lock);
}

static int count_heard(const char *key_id) {
    int n = 0;
    pthread_mutex_lock(&heard_lock);
    for (int i = 0; i < n_heard; i++)
        n += !strcmp(heard[i], key_id);
    pthread_mutex_unlock(&heard_lock);
    return n;
}

// ---- one check, whatever way it is answered

typedef struct check {
    auth_answer first, answer; // at once; in the end
    int n_answers;
    principal who;
    err e;
} check;

static void on_done(void *ctx, auth_answer answer, const principal *p, const err *e) {
    check *k = ctx;
    k->answer = answer;
    k->n_answers++;
    if (p)
        k->who = *p;
    k->e = *e;
    loop_stop(s.l);
}

static check ask(const char *key) {
    check k = {0};
    k.first = k.answer = auth_check(s.a, key, strlen(key), s.l, on_done, &k, &k.who, &k.e);
    if (k.first == AUTH_PENDING)
        loop_run(s.l);
    return k;
}

// ---- the stage

static void migrate(pg *db) {
    static bool is_done;
    glob_t found;
    err e = {0};
    if (is_done)
        return;
    assert_int_equal(glob("migrations/*.sql", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        buf sql = {0};
        OK(file_read(found.gl_pathv[i], 1 << 20, &sql, &e));
        OK(pg_exec(db, sql.data, &e));
        buf_release(&sql);
    }
    globfree(&found);
    is_done = true;
}

static void open_auth(void) {
    err e = {0};
    s.l = loop_new();
    s.p = pool_new("keys", 2);
    OK(auth_open(&s.c, &s.pepper, s.p, &s.a, &e));
    auth_on_revoked(s.a, on_revoked, NULL);
    n_heard = 0;
}

static void close_auth(void) {
    pool_free(s.p);
    auth_close(s.a);
    loop_free(s.l);
}

static int setup(void **state) {
    (void)state;
    err e = {0};
    s = (stage){.pepper = {.n = 1, .keys = {{.id = 7, .key = {1, 2, 3}}}}};
    snprintf(s.c.postgres_url, sizeof s.c.postgres_url, "%s", test_postgres()->address);
    OK(pg_connect(s.c.postgres_url, &s.db, &e));
    migrate(s.db);
    OK(pg_exec(s.db, "TRUNCATE api_keys, users, tenants CASCADE", &e));
    OK(apikey_create(s.db, &s.pepper, "acme", "ann", "laptop", 1, 0, true, s.key, &s.row, &e));
    open_auth();
    clock_sleep_ms(150); // the listener is connected
    return 0;
}

static int teardown(void **state) {
    (void)state;
    close_auth();
    pg_close(s.db);
    return 0;
}

static void run_sql(const char *sql) {
    err e = {0};
    OK(pg_exec(s.db, sql, &e));
}

// Until the key is denied; ms it took, at most limit + 1.
static int64_t wait_denied(const char *key, int limit, err *e) {
    int64_t begun = clock_mono_ms();
    for (;;) {
        check k = ask(key);
        *e = k.e;
        int64_t waited = clock_mono_ms() - begun;
        if (k.answer == AUTH_DENIED || waited > limit)
            return waited;
        clock_sleep_ms(5);
    }
}

// ---- the cache

static void the_first_check_looks_up_and_the_next_is_answered_at_once(void **state) {
    (void)state;
    check k = ask(s.key);
    assert_int_equal(k.first, AUTH_PENDING);
    assert_int_equal(k.answer, AUTH_OK);
    assert_int_equal(k.n_answers, 1);
    assert_string_equal(k.who.key, s.row.id);
    assert_string_equal(k.who.tenant_name, "acme");
    assert_string_equal(k.who.user_name, "ann");
    assert_string_equal(k.who.key_name, "laptop");
    assert_int_equal(k.who.roles, ROLE_INFERENCE);
    assert_true(k.who.weight == 1.0);
    check again = ask(s.key);
    assert_int_equal(again.first, AUTH_OK);
    assert_string_equal(again.who.tenant, k.who.tenant);
}

static void a_malformed_key_is_denied_without_a_lookup(void **state) {
    (void)state;
    static const char *const bad[] = {"", "tg_live_", "sk-1234", "Bearer"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check k = ask(bad[i]);
        assert_int_equal(k.first, AUTH_DENIED);
        assert_int_equal(k.e.code, ERR_KEY);
    }
}

static void an_unknown_key_is_denied_and_not_looked_up_again(void **state) {
    (void)state;
    char stranger[APIKEY_TEXT];
    apikey_make(stranger);
    check k = ask(stranger);
    assert_int_equal(k.first, AUTH_PENDING);
    assert_int_equal(k.answer, AUTH_DENIED);
    assert_int_equal(k.e.code, ERR_KEY);
    assert_int_equal(ask(stranger).first, AUTH_DENIED);
}

// A known id with another secret, checksum and all.
static void the_right_id_with_another_secret_is_denied(void **state) {
    (void)state;
    char other[APIKEY_TEXT];
    err e = {0};
    apikey_row row;
    OK(apikey_create(s.db, &s.pepper, "acme", "ann", "", 1, 0, true, other, &row, &e));
    run_sql("UPDATE api_keys SET hash = sha256('x') WHERE name = ''");
    check k = ask(other);
    assert_int_equal(k.answer, AUTH_DENIED);
    assert_int_equal(k.e.code, ERR_KEY);
    assert_int_equal(ask(other).first, AUTH_DENIED); // from the cache, too
}

// ---- what ends a key

static void a_revoked_key_is_denied_within_2_s_and_told_once(void **state) {
    (void)state;
    err e = {0};
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    OK(apikey_revoke(s.db, s.row.id, &e));
    assert_in_range(wait_denied(s.key, 5000, &e), 0, 2000);
    assert_int_equal(e.code, ERR_KEY);
    assert_non_null(strstr(e.message, "revoked"));
    clock_sleep_ms(50);
    run_sql("UPDATE api_keys SET roles = 3"); // another notification
    clock_sleep_ms(300);
    assert_int_equal(count_heard(s.row.id), 1);
}

static void a_revocation_while_notifications_are_down_counts_within_5_s(void **state) {
    (void)state;
    err e = {0};
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    run_sql("ALTER TABLE api_keys DISABLE TRIGGER api_keys_changed");
    OK(apikey_revoke(s.db, s.row.id, &e));
    run_sql("ALTER TABLE api_keys ENABLE TRIGGER api_keys_changed");
    assert_int_equal(ask(s.key).answer, AUTH_OK); // nobody said so
    run_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~* '^LISTEN'");
    assert_in_range(wait_denied(s.key, 8000, &e), 0, 5000);
    clock_sleep_ms(50);
    assert_int_equal(count_heard(s.row.id), 1);
}

static void a_key_expires_by_itself(void **state) {
    (void)state;
    char key[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    OK(apikey_create(s.db, &s.pepper, "acme", "ann", "", 1, 1, true, key, &row, &e));
    assert_int_equal(ask(key).answer, AUTH_OK);
    assert_in_range(wait_denied(key, 5000, &e), 500, 1500);
    assert_non_null(strstr(e.message, "expired"));
    clock_sleep_ms(800);
    assert_int_equal(count_heard(row.id), 1);
}

static void a_suspended_tenant_or_user_stops_and_may_come_back(void **state) {
    (void)state;
    static const char *const owners[] = {"tenants", "users"};
    for (int i = 0; i < 2; i++) {
        char sql[96];
        err e = {0};
        assert_int_equal(ask(s.key).answer, AUTH_OK);
        snprintf(sql, sizeof sql, "UPDATE %s SET suspended_at = now()", owners[i]);
        run_sql(sql);
        assert_in_range(wait_denied(s.key, 5000, &e), 0, 2000);
        assert_int_equal(e.code, ERR_KEY);
        assert_non_null(strstr(e.message, "suspended"));
        snprintf(sql, sizeof sql, "UPDATE %s SET suspended_at = NULL", owners[i]);
        run_sql(sql);
        int64_t until = clock_mono_ms() + 2000;
        while (ask(s.key).answer != AUTH_OK && clock_mono_ms() < until)
            clock_sleep_ms(5);
        assert_int_equal(ask(s.key).answer, AUTH_OK);
    }
    assert_int_equal(count_heard(s.row.id), 2);
}

static void changed_roles_and_weight_are_taken_over(void **state) {
    (void)state;
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    run_sql("UPDATE api_keys SET roles = 3");
    run_sql("UPDATE tenants SET weight = 2.5");
    int64_t until = clock_mono_ms() + 2000;
    check k = ask(s.key);
    while ((k.who.roles != 3 || k.who.weight < 2) && clock_mono_ms() < until) {
        clock_sleep_ms(5);
        k = ask(s.key);
    }
    assert_int_equal(k.who.roles, ROLE_INFERENCE | ROLE_ADMIN);
    assert_true(k.who.weight == 2.5);
}

// The look-up reads the row, which takes half a second here, and is overtaken by the revocation.
static void a_lookup_that_races_with_a_revocation_leaves_no_live_key(void **state) {
    (void)state;
    check k = {0};
    err e = {0};
    run_sql("ALTER TABLE api_keys RENAME TO slow_keys");
    run_sql("CREATE VIEW api_keys AS SELECT k.* FROM slow_keys k, pg_sleep(0.5)");
    k.first = auth_check(s.a, s.key, 55, s.l, on_done, &k, &k.who, &k.e);
    clock_sleep_ms(200);
    run_sql("UPDATE slow_keys SET revoked_at = now()");
    loop_run(s.l);
    run_sql("DROP VIEW api_keys");
    run_sql("ALTER TABLE slow_keys RENAME TO api_keys");
    assert_int_equal(k.first, AUTH_PENDING);
    assert_int_equal(k.answer, AUTH_OK); // as it was when the row was read
    assert_in_range(wait_denied(s.key, 5000, &e), 0, 2000);
}

// ---- outages

static void an_outage_leaves_known_keys_valid_and_unknown_ones_undecided(void **state) {
    (void)state;
    char stranger[APIKEY_TEXT];
    apikey_make(stranger);
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    pg_close(s.db);
    s.db = NULL;
    test_server_kill(test_postgres(), SIGQUIT);
    check k = ask(stranger);
    assert_int_equal(k.answer, AUTH_DENIED);
    assert_int_equal(k.e.code, ERR_DEPENDENCY);
    assert_true(k.e.retry_ms > 0);
    clock_sleep_ms(2500); // the refresher tried and failed
    assert_int_equal(ask(s.key).first, AUTH_OK);
    test_server_start(test_postgres());
    err e = {0};
    OK(pg_connect(s.c.postgres_url, &s.db, &e));
    OK(apikey_revoke(s.db, s.row.id, &e)); // and the listener comes back
    assert_in_range(wait_denied(s.key, 8000, &e), 0, 5000);
    k = ask(stranger);
    assert_int_equal(k.e.code, ERR_KEY);
}

// Signals the server and all backends but ours, as if the machine hung.
static void signal_postgres(int signal) {
    static pid_t pids[64];
    static int n;
    err e = {0};
    pg_result *r = NULL;
    if (signal == SIGSTOP) {
        OK(pg_query(s.db,
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND "
                    "pid <> pg_backend_pid()",
                    0, NULL, &r, &e));
        for (n = 0; n < pg_rows(r) && n < 64; n++)
            pids[n] = (pid_t)pg_int(r, n, 0);
        pg_result_free(r);
    }
    for (int i = 0; i < n; i++)
        kill(pids[i], signal);
    test_server_kill(test_postgres(), signal);
}

static void a_hung_database_is_an_outage_too(void **state) {
    (void)state;
    char stranger[APIKEY_TEXT];
    apikey_make(stranger);
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    signal_postgres(SIGSTOP);
    int64_t begun = clock_mono_ms();
    check k = ask(stranger);
    int64_t took = clock_mono_ms() - begun;
    check known = ask(s.key);
    signal_postgres(SIGCONT);
    assert_int_equal(known.first, AUTH_OK);
    assert_int_equal(k.answer, AUTH_DENIED);
    assert_int_equal(k.e.code, ERR_DEPENDENCY);
    assert_in_range(took, 0, 8000);
}

// ---- peppers

static void a_key_whose_pepper_is_missing_is_no_wrong_key(void **state) {
    (void)state;
    run_sql("UPDATE api_keys SET pepper_id = 99");
    check k = ask(s.key);
    assert_int_equal(k.answer, AUTH_DENIED);
    assert_int_equal(k.e.code, ERR_DEPENDENCY);
    assert_non_null(strstr(k.e.message, "99"));
}

static void keys_of_both_peppers_are_valid_during_a_rotation(void **state) {
    (void)state;
    char fresh[APIKEY_TEXT];
    apikey_row row;
    err e = {0};
    close_auth();
    s.pepper = (secret_ring){.n = 2, .keys = {{.id = 8, .key = {4, 5}}, s.pepper.keys[0]}};
    open_auth();
    OK(apikey_create(s.db, &s.pepper, "acme", "ann", "", 1, 0, true, fresh, &row, &e));
    assert_int_equal(ask(s.key).answer, AUTH_OK);
    assert_int_equal(ask(fresh).answer, AUTH_OK);
    close_auth();
    s.pepper.n = 1; // the old one is gone
    open_auth();
    assert_int_equal(ask(s.key).e.code, ERR_DEPENDENCY);
    assert_int_equal(ask(fresh).answer, AUTH_OK);
}

static void use_is_written_when_auth_closes(void **state) {
    (void)state;
    err e = {0};
    pg_result *r = NULL;
    ask(s.key); // the look-up is a use, too
    close_auth();
    OK(pg_query(s.db, "SELECT last_used_at IS NOT NULL FROM api_keys", 0, NULL, &r, &e));
    assert_string_equal(pg_text(r, 0, 0), "t");
    pg_result_free(r);
    open_auth();
}

int main(void) {
#define AUTH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        AUTH(the_first_check_looks_up_and_the_next_is_answered_at_once),
        AUTH(a_malformed_key_is_denied_without_a_lookup),
        AUTH(an_unknown_key_is_denied_and_not_looked_up_again),
        AUTH(the_right_id_with_another_secret_is_denied),
        AUTH(a_revoked_key_is_denied_within_2_s_and_told_once),
        AUTH(a_revocation_while_notifications_are_down_counts_within_5_s),
        AUTH(a_key_expires_by_itself),
        AUTH(a_suspended_tenant_or_user_stops_and_may_come_back),
        AUTH(changed_roles_and_weight_are_taken_over),
        AUTH(a_lookup_that_races_with_a_revocation_leaves_no_live_key),
        AUTH(an_outage_leaves_known_keys_valid_and_unknown_ones_undecided),
        AUTH(a_hung_database_is_an_outage_too),
        AUTH(a_key_whose_pepper_is_missing_is_no_wrong_key),
        AUTH(keys_of_both_peppers_are_valid_during_a_rotation),
        AUTH(use_is_written_when_auth_closes),
    };
    if (!test_has_postgres()) {
        puts("skip: PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
