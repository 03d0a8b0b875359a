// The configuration: what is taken, from where, and how it is refused.
#include "base/config.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static config c;
static err e;

static const char *write_file(const char *text) {
    static char path[128];
    snprintf(path, sizeof path, "%s/t.ini", test_dir());
    assert_int_equal(file_write_atomic(path, 0600, text, strlen(text), NULL), 0);
    return path;
}

static int load(const char *text) {
    e = (err){0};
    return config_load(&c, write_file(text), NULL, 0, &e);
}

// Expects a refusal at `line` that names `key` and says `what`.
static void refuse(const char *text, int line, const char *key, const char *what) {
    char place[200];
    snprintf(place, sizeof place, "t.ini:%d: ", line);
    if (load(text) == 0)
        fail_msg("was taken: %s", text);
    assert_int_equal(e.code, ERR_INVALID);
    if ((line && !strstr(e.message, place)) || !strstr(e.message, what))
        fail_msg("want line %d and \"%s\", got: %s", line, what, e.message);
    if (key)
        assert_string_equal(e.param, key);
}

static void the_defaults_are_those_that_are_documented(void **state) {
    (void)state;
    assert_int_equal(config_load(&c, NULL, NULL, 0, &e), 0);
    assert_string_equal(c.listen.host, "127.0.0.1");
    assert_int_equal(c.listen.port, 8443);
    assert_int_equal(c.admin_listen.port, 9443);
    assert_int_equal(c.ops_listen.port, 9464);
    assert_int_equal(c.body_bytes, 8 << 20);
    assert_int_equal(c.head_bytes, 16384);
    assert_int_equal(c.head_ms, 10000);
    assert_int_equal(c.json_depth, 64);
    assert_int_equal(c.max_messages, 2048);
    assert_int_equal(c.max_choices, 8);
    assert_int_equal(c.default_max_tokens, 512);
    assert_int_equal(c.request_ms, 600000);
    assert_int_equal(c.reactors, 0);
    assert_int_equal(c.stream_buffer_bytes, 1 << 20);
    assert_int_equal(c.queue_per_tenant, 10000);
    assert_int_equal(c.queue_per_tier, 50000);
    assert_int_equal(c.journal_bytes, 1 << 30);
    assert_int_equal(c.slots, 16);
    assert_int_equal(c.step_tokens, 512);
    assert_int_equal(c.kv_bytes, 1 << 30);
    assert_int_equal(c.n_models, 0);
}

static void a_file_sets_every_kind_of_key(void **state) {
    (void)state;
    assert_int_equal(load("\xef\xbb\xbf# a comment\r\n"
                          "[gateway]\r\n"
                          "listen = [::1]:0 ; behind a value\n"
                          "plain_http = true\n"
                          "body_bytes = 3MiB\n"
                          "head_ms=500\n"
                          "\n"
                          "; another\n"
                          "[worker]\n"
                          "cpu = avx2\n"
                          "kv_bytes = 1073741824\n"
                          "[redis]\n"
                          "address = unix:/run/redis.sock\n"
                          "[postgres]\n"
                          "url = postgresql:///tiergate?host=/run/pg\n"
                          "[model Qwen2.5-Coder/7B]\n"
                          "path = /models/q.gguf\n"
                          "tier = 7b\n"
                          "price_in = 12\n"
                          "[model small]\n"
                          "tier = s\n"
                          "path = s.gguf\n"),
                     0);
    assert_string_equal(c.listen.host, "::1");
    assert_int_equal(c.listen.port, 0);
    assert_true(c.plain_http);
    assert_int_equal(c.body_bytes, 3 << 20);
    assert_int_equal(c.head_ms, 500);
    assert_string_equal(c.cpu, "avx2");
    assert_int_equal(c.kv_bytes, 1 << 30);
    assert_string_equal(c.redis_address, "unix:/run/redis.sock");
    assert_int_equal(c.n_models, 2);
    const config_model *m = config_find_model(&c, "Qwen2.5-Coder/7B");
    assert_non_null(m);
    assert_string_equal(m->path, "/models/q.gguf");
    assert_int_equal(m->price_in, 12);
    assert_string_equal(config_find_model(&c, "small")->tier, "s");
    assert_null(config_find_model(&c, "other"));
}

static void a_bad_value_is_refused_with_its_line_and_key(void **state) {
    (void)state;
    refuse("[gateway]\nhead_ms = 99\n", 2, "gateway.head_ms", "from 100 to 600000, got \"99\"");
    refuse("[gateway]\n\nhead_ms = 600001\n", 3, "gateway.head_ms", "600001");
    refuse("[gateway]\nhead_ms = -5\n", 2, "gateway.head_ms", "-5");
    refuse("[gateway]\nhead_ms = 1e3\n", 2, "gateway.head_ms", "1e3");
    refuse("[gateway]\nhead_ms = 5KiB\n", 2, "gateway.head_ms", "5KiB");
    refuse("[gateway]\nhead_ms =\n", 2, "gateway.head_ms", "got \"\"");
    refuse("[gateway]\nbody_bytes = 8MB\n", 2, "gateway.body_bytes", "from 1KiB to 1GiB");
    refuse("[gateway]\nbody_bytes = 99999999999999GiB\n", 2, "gateway.body_bytes", "a size");
    refuse("[gateway]\nplain_http = yes\n", 2, "gateway.plain_http", "true or false");
    refuse("[general]\nlog_level = loud\n", 2, "general.log_level", "debug|info|warn|error");
    refuse("[gateway]\nlisten = 8443\n", 2, "gateway.listen", "host:port");
    refuse("[gateway]\nlisten = :8443\n", 2, "gateway.listen", "host:port");
    refuse("[gateway]\nlisten = a:65536\n", 2, "gateway.listen", "host:port");
    refuse("[gateway]\nlisten = ::1:8443\n", 2, "gateway.listen", "host:port");
    refuse("[gateway]\nlisten = [x]:8443\n", 2, "gateway.listen", "host:port");
    refuse("[redis]\naddress = localhost\n", 2, "redis.address", "no address of Redis");
    refuse("[postgres]\nurl = postgresql://[::1\n", 2, "postgres.url", "PostgreSQL");
    refuse("[general]\ndata_dir =\n", 2, "general.data_dir", "must not be empty");
    refuse("[worker]\ntier = a b\n", 2, "worker.tier", "letters, digits");
    refuse("[worker]\ntier = 12345678901234567\n", 2, "worker.tier", "at most 15 characters");
}

static void what_is_unknown_or_malformed_is_never_passed_over(void **state) {
    (void)state;
    refuse("[gateway]\nlisen = 127.0.0.1:1\n", 2, "gateway.lisen", "no such key");
    refuse("[gatway]\n", 1, "gatway", "no such section");
    refuse("[model]\npath = x\n", 1, NULL, "want [model NAME]");
    refuse("[model a b]\npath = x\n", 1, NULL, "a model's name");
    refuse("[modelx y]\n", 1, NULL, "no such section");
    refuse("[gateway x]\nhead_ms = 500\n", 1, NULL, "no such section");
    refuse("head_ms = 500\n", 1, "head_ms", "before the first [section]");
    refuse("[gateway]\nhead_ms\n", 2, NULL, "neither [section]");
    refuse("[gateway\nhead_ms = 500\n", 1, NULL, "neither [section]");
    refuse("[gateway]\nhead_ms = 500\n[worker]\n[gateway]\nhead_ms = 500\n", 5, NULL,
           "given twice");
    refuse("[gateway]\nhead_ms = 500\n  600\n", 3, NULL, "given twice");
    refuse("[model m]\ntier = t\n", 0, "model.m.path", "is missing");
    refuse("[model m]\npath = t\n", 0, "model.m.tier", "is missing");
    refuse("[model m]\n", 0, "model.m.path", "is missing");
    char long_name[200] = "[model ";
    memset(long_name + 7, 'x', 64);
    strcat(long_name, "]\n");
    refuse(long_name, 1, NULL, "a model's name");
    char many[4000] = "";
    for (int i = 0; i < CONFIG_MODELS + 1; i++)
        sprintf(many + strlen(many), "[model m%d]\npath = x\ntier = t\n", i);
    refuse(many, 3 * CONFIG_MODELS + 1, NULL, "more than 16 models");
    assert_int_equal(config_load(&c, "/nonexistent.ini", NULL, 0, &e), -1);
    assert_non_null(strstr(e.message, "/nonexistent.ini"));
}

static void keys_that_contradict_each_other_are_refused(void **state) {
    (void)state;
    refuse("[gateway]\ntls_cert = a\n", 0, "gateway.tls_key", "is missing");
    refuse("[gateway]\ntls_key = a\n", 0, "gateway.tls_cert", "is missing");
    refuse("[gateway]\nreactors = 256\n", 0, "gateway.reactors", "cores");
    refuse("[gateway]\nqueue_per_tier = 5\n", 0, "gateway.queue_per_tenant", "queue_per_tier");
    refuse("[worker]\nslots = 600\n", 0, "worker.step_tokens", "worker.slots");
}

static void a_line_longer_than_the_parser_takes_is_read_whole(void **state) {
    (void)state;
    char text[2000], want[CONFIG_TEXT] = "";
    for (int n = 150; n < 255; n++) {
        memset(want, 0, sizeof want);
        for (int i = 0; i < n; i++)
            want[i] = (char)(i % 7 == 3 && i < n - 1 ? ' ' : i % 11 == 0 ? '#' : 'a' + i % 26);
        want[0] = '/';
        snprintf(text, sizeof text, "[general]\ndata_dir = %s\nlog_level = warn\n", want);
        if (load(text))
            fail_msg("%d characters: %s", n, e.message);
        assert_string_equal(c.data_dir, want);
        assert_string_equal(c.log_level, "warn");
    }
    memset(text, 'x', 700);
    memcpy(text, "[general]\n# ", 12);
    strcpy(text + 600, "\nlog_level = wrong\n");
    refuse(text, 3, "general.log_level", "wrong");
    memset(text, 'x', 700);
    memcpy(text, "[general]\ndata_dir = ", 21);
    strcpy(text + 600, "\n");
    refuse(text, 2, "general.data_dir", "at most 255 characters");
}

static void set_wins_over_the_environment_and_that_over_the_file(void **state) {
    (void)state;
    const char *path = write_file("[gateway]\nhead_ms = 500\njson_depth = 10\nmax_choices = 2\n");
    setenv("TIERGATE_GATEWAY_HEAD_MS", "600", 1);
    setenv("TIERGATE_GATEWAY_JSON_DEPTH", "11", 1);
    const char *sets[] = {"gateway.head_ms=700", "model.Qwen2.5.path=/a=b.gguf",
                          "model.Qwen2.5.tier=7b"};
    int rc = config_load(&c, path, sets, 3, &e);
    setenv("TIERGATE_GATEWAY_HEAD_MS", "x", 1);
    int bad = config_load(&c, path, NULL, 0, &e);
    unsetenv("TIERGATE_GATEWAY_HEAD_MS");
    unsetenv("TIERGATE_GATEWAY_JSON_DEPTH");
    assert_int_equal(bad, -1);
    assert_non_null(strstr(e.message, "TIERGATE_GATEWAY_HEAD_MS: gateway.head_ms: "));
    assert_int_equal(rc, 0);
    assert_int_equal(config_load(&c, path, sets, 3, &e), 0);
    assert_int_equal(c.head_ms, 700);
    assert_int_equal(c.max_choices, 2);
    assert_string_equal(config_find_model(&c, "Qwen2.5")->path, "/a=b.gguf");
    const char *wrong[] = {"gateway.head_ms",  "head_ms=5",    "=",
                           "gateway.=5",       "model.path=x", "gateway.x.head_ms=500",
                           "gateway.head_ms=5"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(config_load(&c, NULL, &wrong[i], 1, &e), -1);
        assert_non_null(strstr(e.message, "--set"));
    }
}

static void reload_takes_live_keys_and_names_the_others(void **state) {
    (void)state;
    assert_int_equal(load("[model a]\npath = a\ntier = t\n[model gone]\npath = a\ntier = t\n"), 0);
    const char *path = write_file("[general]\nlog_level = debug\n[gateway]\nhead_ms = 500\n"
                                  "[model a]\npath = b\ntier = t\nprice_out = 7\n"
                                  "[model new]\npath = n\ntier = t\n");
    int n_changed = 0;
    buf restart = {0};
    assert_int_equal(config_reload(&c, path, NULL, 0, &n_changed, &restart, &e), 0);
    assert_int_equal(n_changed, 2);
    assert_string_equal(c.log_level, "debug");
    assert_int_equal(c.models[0].price_out, 7);
    assert_int_equal(c.head_ms, 10000);
    assert_string_equal(c.models[0].path, "a");
    assert_string_equal(restart.data, "gateway.head_ms, model.a.path, model.gone, model.new");
    buf_clear(&restart);
    path = write_file("[general]\nlog_level = loud\n");
    assert_int_equal(config_reload(&c, path, NULL, 0, &n_changed, &restart, &e), -1);
    assert_string_equal(c.log_level, "debug");
    buf_release(&restart);
}

static void reload_takes_port_0_for_the_port_that_was_chosen(void **state) {
    (void)state;
    int n_changed = 0;
    buf restart = {0};
    assert_int_equal(load("[gateway]\nlisten = h:0\nadmin_listen = h:0\nops_listen = h:3\n"), 0);
    c.listen.port = 1;
    c.admin_listen.port = 2;
    const char *path =
        write_file("[gateway]\nlisten = h:0\nadmin_listen = h:2\nops_listen = h:3\n");
    assert_int_equal(config_reload(&c, path, NULL, 0, &n_changed, &restart, &e), 0);
    assert_int_equal(restart.len, 0);
    assert_int_equal(c.listen.port, 1);
    path = write_file("[gateway]\nlisten = i:0\nadmin_listen = h:1\nops_listen = i:3\n");
    assert_int_equal(config_reload(&c, path, NULL, 0, &n_changed, &restart, &e), 0);
    assert_string_equal(restart.data, "gateway.listen, gateway.admin_listen, gateway.ops_listen");
    buf_release(&restart);
}

static void a_dump_loads_to_the_same_configuration(void **state) {
    (void)state;
    static config again;
    const char *sets[] = {"gateway.listen=[::1]:1", "gateway.body_bytes=1500",
                          "redis.address=a:1",      "model.x.path=/p q",
                          "model.x.tier=t",         "gateway.plain_http=true"};
    assert_int_equal(config_load(&c, NULL, sets, 6, &e), 0);
    buf text = {0};
    config_dump(&c, &text);
    if (config_load(&again, write_file(text.data), NULL, 0, &e))
        fail_msg("%s", e.message);
    buf second = {0};
    config_dump(&again, &second);
    assert_string_equal(text.data, second.data);
    assert_int_equal(again.body_bytes, 1500);
    assert_string_equal(again.models[0].path, "/p q");
    buf_release(&text);
    buf_release(&second);
}

static void the_sample_file_says_the_defaults(void **state) {
    (void)state;
    static config defaults;
    buf sample = {0}, a = {0}, b = {0};
    config_sample(&sample);
    // Every key uncommented: "#name = value" becomes "name = value"; comments have a blank after
    // the #.
    *strstr(sample.data, "\n#[model NAME]") = '\0';
    for (char *p = sample.data; (p = strstr(p, "\n#")); p++)
        if (p[2] != ' ')
            p[1] = ' ';
    char *p;
    while ((p = strstr(sample.data, "\n ")) != NULL)
        memmove(p + 1, p + 2, strlen(p + 2) + 1);
    if (load(sample.data))
        fail_msg("%s", e.message);
    assert_int_equal(config_load(&defaults, NULL, NULL, 0, &e), 0);
    config_dump(&c, &a);
    config_dump(&defaults, &b);
    assert_string_equal(a.data, b.data);
    buf_release(&sample);
    buf_release(&a);
    buf_release(&b);
}

static void the_written_documents_are_those_the_table_makes(void **state) {
    (void)state;
    const char *paths[] = {"deploy/tiergate.example.ini", "docs/config.md"};
    void (*make[])(buf *) = {config_sample, config_markdown};
    for (int i = 0; i < 2; i++) {
        buf have = {0}, want = {0};
        if (file_read(paths[i], 1 << 20, &have, &e))
            fail_msg("%s (run from the top directory)", e.message);
        make[i](&want);
        if (strcmp(have.data, want.data) != 0)
            fail_msg("%s is stale: make docs-config", paths[i]);
        buf_release(&have);
        buf_release(&want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_defaults_are_those_that_are_documented),
        cmocka_unit_test(a_file_sets_every_kind_of_key),
        cmocka_unit_test(a_bad_value_is_refused_with_its_line_and_key),
        cmocka_unit_test(what_is_unknown_or_malformed_is_never_passed_over),
        cmocka_unit_test(keys_that_contradict_each_other_are_refused),
        cmocka_unit_test(a_line_longer_than_the_parser_takes_is_read_whole),
        cmocka_unit_test(set_wins_over_the_environment_and_that_over_the_file),
        cmocka_unit_test(reload_takes_live_keys_and_names_the_others),
        cmocka_unit_test(reload_takes_port_0_for_the_port_that_was_chosen),
        cmocka_unit_test(a_dump_loads_to_the_same_configuration),
        cmocka_unit_test(the_sample_file_says_the_defaults),
        cmocka_unit_test(the_written_documents_are_those_the_table_makes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
