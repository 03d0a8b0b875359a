// Where a command's configuration comes from, and which value wins.
#include "cli/settings.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char dir[128];
static settings s;
static config c;
static err e;

static const char *place(const char *name) {
    static char path[4][512];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

static void put(const char *name, const char *text) {
    err why = {0};
    if (file_write_atomic(place(name), 0600, text, strlen(text), &why))
        fail_msg("%s", why.message);
}

static int setup(void **state) {
    (void)state;
    static int n;
    err why = {0};
    s = (settings){0};
    e = (err){0};
    snprintf(dir, sizeof dir, "%s/settings%d", test_dir(), n++);
    assert_int_equal(file_mkdirs(dir, 0700, &why), 0);
    unsetenv("TIERGATE_CONFIG");
    unsetenv("TIERGATE_GENERAL_LOG_LEVEL");
    setenv("HOME", dir, 1);
    setenv("XDG_DATA_HOME", place("share"), 1);
    setenv("XDG_CACHE_HOME", place("cache"), 1);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    settings_release(&s);
    return 0;
}

// ---- tools and roles

static void a_file_that_is_named_is_read(void **state) {
    (void)state;
    put("a.ini", "[general]\nlog_level = warn\n");
    s.file = place("a.ini");
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "warn");
    assert_string_equal(s.path, s.file);
}

static void a_named_file_or_directory_that_is_not_there_is_said(void **state) {
    (void)state;
    s.file = place("none.ini");
    assert_int_equal(settings_load(&s, &c, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_non_null(strstr(e.message, "none.ini does not exist"));
    s.file = NULL;
    s.data = place("nothing");
    assert_int_equal(settings_load(&s, &c, &e), -1);
    assert_non_null(strstr(e.message, "nothing/run.ini does not exist; was `tiergate up` started"));
}

static void data_finds_the_running_installation(void **state) {
    (void)state;
    put("run.ini", "[general]\nlog_level = error\n");
    s.data = dir;
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "error");
    put("b.ini", "[general]\nlog_level = debug\n");
    s.file = place("b.ini"); // --config says more than --data
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "debug");
}

static void the_environment_names_a_file_when_no_option_does(void **state) {
    (void)state;
    put("env.ini", "[general]\nlog_level = warn\n");
    put("run.ini", "[general]\nlog_level = error\n");
    setenv("TIERGATE_CONFIG", place("env.ini"), 1);
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "warn");
    s.data = dir;
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "error");
    s.data = NULL;
    setenv("TIERGATE_CONFIG", place("none.ini"), 1);
    assert_int_equal(settings_load(&s, &c, &e), -1);
}

static void set_wins_over_the_environment_and_that_over_the_file(void **state) {
    (void)state;
    put("a.ini", "[general]\nlog_level = warn\n");
    s.file = place("a.ini");
    setenv("TIERGATE_GENERAL_LOG_LEVEL", "error", 1);
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "error");
    s.sets.items[s.sets.n++] = "general.log_level=debug";
    assert_int_equal(settings_load(&s, &c, &e), 0);
    assert_string_equal(c.log_level, "debug");
}

static void a_value_that_is_made_wins_over_one_that_is_given(void **state) {
    (void)state;
    s.sets.items[s.sets.n++] = "gateway.listen=127.0.0.1:1";
    settings_set(&s, "gateway.listen", "127.0.0.1:2");
    assert_int_equal(settings_load_up(&s, &c, &e), 0);
    assert_int_equal(c.listen.port, 2);
}

static void an_address_of_postgres_is_asked_for(void **state) {
    (void)state;
    c = (config){0};
    assert_int_equal(settings_need_postgres(&c, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "postgres.url");
    strcpy(c.postgres_url, "postgresql:///x");
    assert_int_equal(settings_need_postgres(&c, &e), 0);
}

// ---- up

static void up_reads_no_run_ini_and_makes_its_directory_private(void **state) {
    (void)state;
    struct stat st;
    put("run.ini", "[general]\nlog_level = error\n");
    s.data = place("new/data");
    assert_int_equal(settings_load_up(&s, &c, &e), 0);
    assert_string_equal(c.data_dir, s.data);
    assert_int_equal(stat(c.data_dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    s.data = dir;
    assert_int_equal(settings_load_up(&s, &c, &e), 0);
    assert_string_not_equal(c.log_level, "error");
}

static void a_relative_directory_becomes_absolute(void **state) {
    (void)state;
    char was[512];
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(chdir(dir), 0);
    s.data = "here";
    int rc = settings_load_up(&s, &c, &e);
    assert_int_equal(chdir(was), 0);
    assert_int_equal(rc, 0);
    assert_string_equal(c.data_dir, place("here"));
}

static void a_path_that_is_too_long_makes_nothing(void **state) {
    (void)state;
    char path[600];
    struct stat st;
    int n = snprintf(path, sizeof path, "%s/long/", dir);
    memset(path + n, 'x', 250);
    path[n + 250] = 0;
    s.data = path;
    assert_int_equal(settings_load_up(&s, &c, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "data");
    assert_int_equal(stat(place("long"), &st), -1);
}

// ---- models of the command line

static void models_get_the_tiers_in_their_order(void **state) {
    (void)state;
    put("m.gguf", "");
    char text[3][256];
    for (int i = 0; i < 3; i++) {
        snprintf(text[i], sizeof text[i], "m%d=%s", i, place("m.gguf"));
        assert_int_equal(settings_set_model(&s, text[i], i, &e), 0);
    }
    s.data = place("data");
    assert_int_equal(settings_load_up(&s, &c, &e), 0);
    assert_int_equal(c.n_models, 3);
    assert_string_equal(c.models[0].tier, "7b");
    assert_string_equal(c.models[2].tier, "72b");
    assert_string_equal(c.models[1].path, place("m.gguf"));
    assert_int_equal(settings_set_model(&s, text[0], 3, &e), -1);
    assert_non_null(strstr(e.message, "at most three"));
}

static void a_model_without_name_or_file_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"", "x", "=x", "x=", "x=/nonexistent/m.gguf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(settings_set_model(&s, bad[i], 0, &e), -1);
        assert_int_equal(e.code, ERR_INVALID);
        assert_string_equal(e.param, "model");
    }
}

static void the_default_directory_depends_on_who_starts_it(void **state) {
    (void)state;
    char out[256];
    assert_int_equal(settings_default_data(out, sizeof out, &e), 0);
    assert_string_equal(out, geteuid() == 0 ? "/var/lib/tiergate" : place("share/tiergate"));
}

int main(void) {
#define SETTINGS(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        SETTINGS(a_file_that_is_named_is_read),
        SETTINGS(a_named_file_or_directory_that_is_not_there_is_said),
        SETTINGS(data_finds_the_running_installation),
        SETTINGS(the_environment_names_a_file_when_no_option_does),
        SETTINGS(set_wins_over_the_environment_and_that_over_the_file),
        SETTINGS(a_value_that_is_made_wins_over_one_that_is_given),
        SETTINGS(an_address_of_postgres_is_asked_for),
        SETTINGS(up_reads_no_run_ini_and_makes_its_directory_private),
        SETTINGS(a_relative_directory_becomes_absolute),
        SETTINGS(a_path_that_is_too_long_makes_nothing),
        SETTINGS(models_get_the_tiers_in_their_order),
        SETTINGS(a_model_without_name_or_file_is_refused),
        SETTINGS(the_default_directory_depends_on_who_starts_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
