// The tools the build trusts: the include table and the counting of test results, tried on planted
// files and programs.
#include "base/buf.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

// Writes DIR/NAME; returns its path in a static buffer.
static const char *plant(const char *name, const char *text, mode_t mode) {
    static char path[300];
    char dir[300];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path, '/') - path), path);
    assert_int_equal(file_mkdirs(dir, 0755, NULL), 0);
    assert_int_equal(file_write_atomic(path, mode, text, strlen(text), NULL), 0);
    return path;
}

// Runs a command; returns its exit status, and its output in *out.
static int run(const char *command, buf *out) {
    char piece[4096];
    size_t n;
    buf_clear(out);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    while ((n = fread(piece, 1, sizeof piece, f)) > 0)
        buf_put(out, piece, n);
    buf_put(out, "", 0);
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

typedef struct planted {
    const char *room, *line;
} planted;

// Plants each line in a file of its own, runs the check once, and expects all or none of them to be
// named.
static void try_includes(const planted *all, size_t n, bool is_allowed) {
    char command[400], name[100], text[300];
    buf out = {0};
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "tree%d/%s/x%zu.c", is_allowed, all[i].room, i);
        snprintf(text, sizeof text, "/* a\n comment */\n%s\n", all[i].line);
        plant(name, text, 0644);
    }
    snprintf(command, sizeof command, "python3 tools/layers.py %s/tree%d 2>&1", test_dir(),
             is_allowed);
    assert_int_equal(run(command, &out), is_allowed ? 0 : 1);
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s/x%zu.c:3: ", all[i].room, i);
        if ((strstr(out.data, name) != NULL) == is_allowed)
            fail_msg("%s in %s: %s", all[i].line, all[i].room, out.data);
    }
    buf_release(&out);
}

static void an_include_outside_the_table_is_found(void **state) {
    (void)state;
    static const planted forbidden[] = {
        {"base", "#include \"model/gguf.h\""},
        {"kernels/cpu", "#include \"model/model.h\""},
        {"model", "#include \"kernels/ops.h\""},
        {"engine", "#include \"kernels/half.h\""},
        {"engine", "#include \"kernels/cpu/cpu.h\""},
        {"engine", "#include \"router/queue.h\""},
        {"auth", "#include \"router/queue.h\""},
        {"router", "#include \"auth/auth.h\""},
        {"router", "#include \"engine/engine.h\""},
        {"worker", "#include \"router/quota.h\""},
        {"worker", "#include \"engine/kv.h\""},
        {"worker", "#include \"kernels/ops.h\""},
        {"worker", "#include \"server/http.h\""},
        {"server", "#include \"engine/engine.h\""},
        {"server", "  #  include   \"kernels/ops.h\""},
        {"server/console", "#include \"worker/worker.h\""},
        {"cli", "#include \"model/gguf_internal.h\""},
        {"cli", "#include \"kernels/cpu/cpu.h\""},
        {"server", "#include \"base/pg_internal.h\""},
        {"router", "#include <hiredis/hiredis.h>"},
        {"auth", "#include <libpq-fe.h>"},
        {"auth", "#include <postgresql/libpq-fe.h>"},
        {"worker", "#include <curl/curl.h>"},
        {"cli", "#include <hiredis/async.h>"},
        {"router", "#include <engine/engine.h>"},
        {"router", "#include \"queue.h\""},
        {"router", "#include \"base/../engine/engine.h\""},
        {"router", "#include \"tests/support/servers.h\""},
        {"router", "#include HEADER"},
    };
    try_includes(forbidden, sizeof forbidden / sizeof *forbidden, false);
}

static void an_include_inside_the_table_passes(void **state) {
    (void)state;
    static const planted allowed[] = {
        {"base", "#include <hiredis/hiredis.h>"},
        {"base", "#include \"base/pg_internal.h\""},
        {"kernels/cpu", "#include \"kernels/cpu/cpu.h\""},
        {"engine", "#include \"kernels/ops.h\""},
        {"worker", "#include \"engine/engine.h\""},
        {"worker", "#include \"router/reply.h\""},
        {"server", "#include \"auth/auth.h\""},
        {"cli", "#include \"worker/worker.h\""},
        {"server", "#include <microhttpd.h>"},
        {"server", "// #include \"engine/engine.h\""},
    };
    try_includes(allowed, sizeof allowed / sizeof *allowed, true);
}

// Runs the runner over one planted program and expects its last line.
static void count(const char *script, const char *last, bool is_success) {
    char command[500], text[4000];
    buf out = {0};
    snprintf(text, sizeof text, "#!/bin/sh\n%s\n", script);
    snprintf(command, sizeof command, "TEST_TIMEOUT_S=1 tools/run_tests.sh %s 2>&1",
             plant("program", text, 0755));
    int rc = run(command, &out);
    if (out.len)
        out.data[out.len - 1] = '\0';
    const char *line = strrchr(out.data, '\n');
    if (strcmp(line ? line + 1 : out.data, last) != 0 || (rc == 0) != is_success)
        fail_msg("%s\nwant: %s\ngot (exit %d): %s", script, last, rc, out.data);
    buf_release(&out);
}

static const char mixed[] = "cat <<'END'\n"
                            "[==========] Running 4 test(s).\n"
                            "[ RUN      ] ok\nnoise without newline[       OK ] ok\n"
                            "[ RUN      ] bad\n[  ERROR   ] --- 0x1 != 0x2\n"
                            "[   LINE   ] --- x.c:10: error: Failure!\n[  FAILED  ] bad\n"
                            "[ RUN      ] sk\n[  SKIPPED ] sk\n"
                            "[ RUN      ] crash\n"
                            "[  ERROR   ] --- Test failed with exception: Segmentation fault(11)\n"
                            "[  FAILED  ] crash\n"
                            "[==========] 4 test(s) run.\n"
                            "[  PASSED  ] 1 test(s).\n"
                            "[  SKIPPED ] 1 test(s), listed below:\n[  SKIPPED ] sk\n\n"
                            " 1 SKIPPED TEST(S)\n"
                            "[  FAILED  ] 2 test(s), listed below:\n[  FAILED  ] bad\n"
                            "[  FAILED  ] crash\n\n 2 FAILED TEST(S)\n"
                            "END\n";
static const char good[] = "echo '[==========] Running 2 test(s).'\n"
                           "echo '[==========] 2 test(s) run.'\n"
                           "echo '[  PASSED  ] 2 test(s).'\n";
static const char setup[] = "echo '[==========] Running 2 test(s).'\n"
                            "echo 'Could not run test: Test setup failed'\n"
                            "echo '[  ERROR   ] second'\n"
                            "echo '[==========] 2 test(s) run.'\n"
                            "echo '[  PASSED  ] 1 test(s).'\n";

static const char *script(const char *a, const char *b) {
    static char text[3500];
    snprintf(text, sizeof text, "%s%s", a, b);
    return text;
}

static void each_test_of_a_program_counts_once(void **state) {
    (void)state;
    count(script(good, "exit 0"), "2 passed, 0 failed, 0 skipped", true);
    count(script(mixed, "exit 2"), "1 passed, 2 failed, 1 skipped", false);
    count(script(good, good), "4 passed, 0 failed, 0 skipped", true);
    count(script(setup, "exit 1"), "1 passed, 1 failed, 0 skipped", false);
    count("echo '3 passed, 1 failed, 2 skipped'; exit 1", "3 passed, 1 failed, 2 skipped", false);
}

static void a_program_that_dies_hangs_or_runs_nothing_is_one_failure(void **state) {
    (void)state;
    count("kill -SEGV $$", "0 passed, 1 failed, 0 skipped", false);
    count(script(good, "exit 23"), "2 passed, 1 failed, 0 skipped", false);
    count("exec sleep 20", "0 passed, 1 failed, 0 skipped", false);
    count("exit 0", "0 passed, 1 failed, 0 skipped", false);
    count("echo '[==========] Running 2 test(s).'; exit 0", "0 passed, 1 failed, 0 skipped", false);
    count(script(good, "echo '[==========] Running 2 test(s).'; exit 0"),
          "2 passed, 1 failed, 0 skipped", false);
}

static void a_skip_says_why_and_is_counted_once(void **state) {
    (void)state;
    count("echo 'skip: no server'", "0 passed, 0 failed, 1 skipped", true);
    count(script("echo 'skip: no GPU'\n", good), "1 passed, 0 failed, 1 skipped", true);
    count(script("echo 'skip: why'\n", mixed), "1 passed, 2 failed, 1 skipped", false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_include_outside_the_table_is_found),
        cmocka_unit_test(an_include_inside_the_table_passes),
        cmocka_unit_test(each_test_of_a_program_counts_once),
        cmocka_unit_test(a_program_that_dies_hangs_or_runs_nothing_is_one_failure),
        cmocka_unit_test(a_skip_says_why_and_is_counted_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
