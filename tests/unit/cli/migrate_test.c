// Migrations on a real PostgreSQL: once, in order, also when several start at once; what was
// changed afterwards is refused.
#include "cli/migrate.h"
#include "base/pg.h"
#include "cli/migrations.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static pg *db;

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, e.message);                                                  \
    } while (0)

static int setup(void **state) {
    (void)state;
    err e = {0};
    OK(pg_connect(test_postgres()->address, &db, &e));
    OK(pg_exec(db, "DROP SCHEMA public CASCADE; CREATE SCHEMA public", &e));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    pg_close(db);
    return 0;
}

static long long number(const char *sql) {
    err e = {0};
    pg_result *r = NULL;
    OK(pg_query(db, sql, 0, NULL, &r, &e));
    long long n = pg_int(r, 0, 0);
    pg_result_free(r);
    return n;
}

static void versions_ascend_and_names_begin_with_them(void **state) {
    (void)state;
    assert_true(n_migrations >= 1);
    for (int i = 0; i < n_migrations; i++) {
        assert_int_equal(migrations[i].version, i + 1);
        assert_int_equal(atoi(migrations[i].name), i + 1);
        assert_true(strlen(migrations[i].sql) > 0);
    }
}

static void all_are_applied_once(void **state) {
    (void)state;
    err e = {0};
    int n = -1;
    OK(migrate_run(test_postgres()->address, &n, &e));
    assert_int_equal(n, n_migrations);
    assert_int_equal(number("SELECT count(*) FROM schema_migrations"), n_migrations);
    assert_int_equal(number("SELECT count(*) FROM tenants"), 0);
    OK(migrate_run(test_postgres()->address, &n, &e));
    assert_int_equal(n, 0);
}

static atomic_int applied, failed;

static void *migrate(void *ctx) {
    (void)ctx;
    int n = 0;
    err e = {0};
    if (migrate_run(test_postgres()->address, &n, &e))
        atomic_fetch_add(&failed, 1);
    atomic_fetch_add(&applied, n);
    return NULL;
}

static void several_at_once_apply_each_once(void **state) {
    (void)state;
    pthread_t threads[4];
    atomic_store(&applied, 0);
    atomic_store(&failed, 0);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, migrate, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(failed, 0);
    assert_int_equal(applied, n_migrations);
}

static void a_file_that_was_changed_after_it_was_applied_is_refused(void **state) {
    (void)state;
    err e = {0};
    int n;
    OK(migrate_run(test_postgres()->address, &n, &e));
    OK(pg_exec(db, "UPDATE schema_migrations SET sha256 = 'other' WHERE version = 1", &e));
    assert_int_equal(migrate_run(test_postgres()->address, &n, &e), -1);
    assert_int_equal(e.code, ERR_FORMAT);
    assert_non_null(strstr(e.message, migrations[0].name));
    assert_non_null(strstr(e.message, "was changed"));
    assert_int_equal(n, 0);
}

static void one_that_fails_leaves_nothing_and_is_named(void **state) {
    (void)state;
    err e = {0};
    int n;
    OK(pg_exec(db, "CREATE TABLE usage (other text)", &e)); // in the way
    assert_int_equal(migrate_run(test_postgres()->address, &n, &e), -1);
    assert_non_null(strstr(e.message, migrations[0].name));
    assert_int_equal(number("SELECT count(*) FROM schema_migrations"), 0);
    assert_int_equal(number("SELECT count(*) FROM pg_tables WHERE tablename = 'tenants'"), 0);
    OK(pg_exec(db, "DROP TABLE usage", &e));
    OK(migrate_run(test_postgres()->address, &n, &e)); // the lock was given back
    assert_int_equal(n, n_migrations);
}

static void a_database_of_a_newer_version_is_left_alone(void **state) {
    (void)state;
    err e = {0};
    int n;
    OK(migrate_run(test_postgres()->address, &n, &e));
    OK(pg_exec(db, "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'x', 'y')",
               &e));
    OK(migrate_run(test_postgres()->address, &n, &e));
    assert_int_equal(n, 0);
}

static void a_database_that_is_not_there_is_said(void **state) {
    (void)state;
    err e = {0};
    int n;
    assert_int_equal(migrate_run("postgresql:///x?host=/nonexistent", &n, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
}

int main(void) {
#define MIGRATE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_ascend_and_names_begin_with_them),
        MIGRATE(all_are_applied_once),
        MIGRATE(several_at_once_apply_each_once),
        MIGRATE(a_file_that_was_changed_after_it_was_applied_is_refused),
        MIGRATE(one_that_fails_leaves_nothing_and_is_named),
        MIGRATE(a_database_of_a_newer_version_is_left_alone),
        MIGRATE(a_database_that_is_not_there_is_said),
    };
    if (!test_has_postgres()) {
        puts("skip: PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
