// Assignments: who may use what by which name, and that a change is known without asking.
#include "router/assign.h"
#include "base/clock.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include "tests/support/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define OTHER_TENANT "01900000-0000-7000-8000-0000000000aa"
#define KNOWN_MS 2000

static config c;
static catalogue *models;
static pg *db;
static assign *a;

static void sql(const char *text) {
    err e = {0};
    if (pg_exec(db, text, &e))
        fail_msg("%s", e.message);
}

static int setup(void **state) {
    (void)state;
    err e = {0};
    static int fd;
    life_empty(); // migrations
    if (!models) {
        fd = tiny_model_file(&tiny_models[0]);
        c.n_models = 1;
        snprintf(c.models[0].name, sizeof c.models[0].name, "tiny");
        snprintf(c.models[0].path, sizeof c.models[0].path, "/proc/self/fd/%d", fd);
        if (catalogue_open(&c, &models, &e))
            fail_msg("%s", e.message);
    }
    assert_int_equal(pg_connect(test_postgres()->address, &db, &e), 0);
    sql("DELETE FROM assignments; DELETE FROM tenants;"
        "INSERT INTO tenants (id, name) VALUES ('" LIFE_TENANT "', 'a'), ('" OTHER_TENANT "', 'b');"
        "INSERT INTO assignments (tenant_id, name, model, adapter) VALUES"
        " ('" LIFE_TENANT "', 'tiny', 'tiny', ''), ('" LIFE_TENANT "', 'fast', 'tiny', 'team'),"
        " ('" LIFE_TENANT "', 'gone', 'not-here', '')");
    if (assign_open(test_postgres()->address, models, &a, &e))
        fail_msg("%s", e.message);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    assign_close(a);
    pg_close(db);
    return 0;
}

static void a_tenant_finds_its_names_and_nobody_elses(void **state) {
    (void)state;
    assign_target t;
    err e = {0};
    assert_int_equal(assign_find(a, LIFE_TENANT, "fast", &t, &e), 0);
    assert_string_equal(t.model->config->name, "tiny");
    assert_string_equal(t.name, "fast");
    assert_string_equal(t.adapter, "team");
    assert_int_equal(assign_find(a, OTHER_TENANT, "fast", &t, &e), -1);
    assert_int_equal(e.code, ERR_MODEL_UNKNOWN);
    assert_int_equal(assign_find(a, OTHER_TENANT, "tiny", &t, &e), -1); // exists, not assigned
    assert_int_equal(e.code, ERR_MODEL_DENIED);
    assert_string_equal(e.param, "model");
}

static void a_name_whose_model_is_not_served_here_is_unknown(void **state) {
    (void)state;
    assign_target t;
    err e = {0};
    char longer[300];
    assert_int_equal(assign_find(a, LIFE_TENANT, "gone", &t, &e), -1);
    assert_int_equal(e.code, ERR_MODEL_UNKNOWN);
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(assign_find(a, LIFE_TENANT, longer, &t, &e), -1);
    assert_int_equal(e.code, ERR_MODEL_UNKNOWN);
}

static void the_list_is_what_can_be_called_in_a_stable_order(void **state) {
    (void)state;
    assign_target t[4];
    assert_int_equal(assign_list(a, LIFE_TENANT, t, 4), 2);
    assert_string_equal(t[0].name, "fast");
    assert_string_equal(t[1].name, "tiny");
    assert_int_equal(assign_list(a, LIFE_TENANT, t, 1), 1);
    assert_int_equal(assign_list(a, OTHER_TENANT, t, 4), 0);
}

static bool becomes(const char *tenant, const char *name, int rc) {
    assign_target t;
    for (int i = 0; i < KNOWN_MS / 10; i++, clock_sleep_ms(10))
        if (assign_find(a, tenant, name, &t, NULL) == rc)
            return true;
    return false;
}

static void a_change_is_known_without_asking(void **state) {
    (void)state;
    clock_sleep_ms(200); // the listener has connected
    sql("INSERT INTO assignments (tenant_id, name, model) VALUES ('" OTHER_TENANT
        "', 'mine', 'tiny')");
    assert_true(becomes(OTHER_TENANT, "mine", 0));
    sql("DELETE FROM assignments WHERE tenant_id = '" OTHER_TENANT "'");
    assert_true(becomes(OTHER_TENANT, "mine", -1));
}

int main(void) {
#define ASSIGN(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        ASSIGN(a_tenant_finds_its_names_and_nobody_elses),
        ASSIGN(a_name_whose_model_is_not_served_here_is_unknown),
        ASSIGN(the_list_is_what_can_be_called_in_a_stable_order),
        ASSIGN(a_change_is_known_without_asking),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    catalogue_close(models);
    return rc;
}
