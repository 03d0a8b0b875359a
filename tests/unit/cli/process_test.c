// Child processes: what is said when one cannot start or fails, what it inherits, and that it ends
// with its parent.
#include "cli/process.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static char log_path[128];

static process_spec shell(const char *const *argv) {
    snprintf(log_path, sizeof log_path, "%s/process.log", test_dir());
    unlink(log_path);
    return (process_spec){.name = "child", .argv = argv, .log_path = log_path};
}

#define SHELL(script) shell((const char *const[]){"sh", "-c", script, NULL})

static void read_log(buf *out) {
    err e = {0};
    if (file_read(log_path, 1 << 16, out, &e))
        fail_msg("%s", e.message);
}

// ---- starting

static void a_program_that_is_not_there_is_named(void **state) {
    (void)state;
    process_spec s = shell((const char *const[]){"/nonexistent/program", NULL});
    pid_t pid = 0;
    err e = {0};
    assert_int_equal(process_start(&s, &pid, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "/nonexistent/program"));
    assert_non_null(strstr(e.message, "No such file"));
    assert_true(waitpid(-1, NULL, WNOHANG) <= 0); // no zombie is left
}

static void a_file_that_is_no_program_and_a_log_that_cannot_be_made_are_named(void **state) {
    (void)state;
    process_spec s = shell((const char *const[]){"/etc/passwd", NULL});
    pid_t pid = 0;
    err e = {0};
    assert_int_equal(process_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.message, "Permission denied"));
    s = SHELL("true");
    s.log_path = "/nonexistent/log";
    assert_int_equal(process_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.message, "/nonexistent/log"));
}

static void an_account_that_is_not_there_is_named(void **state) {
    (void)state;
    process_spec s = SHELL("true");
    pid_t pid = 0;
    err e = {0};
    s.user = "nobody-of-this-name";
    assert_int_equal(process_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.message, "nobody-of-this-name"));
}

static void it_runs_as_the_account_without_its_parents_groups(void **state) {
    (void)state;
    process_spec s = SHELL("id -un; id -G");
    buf out = {0};
    err e = {0};
    if (geteuid() != 0) {
        puts("skip: not root");
        skip();
    }
    s.user = "nobody";
    gid_t mine[64], more = 4;
    int n = getgroups(64, mine);
    assert_int_equal(setgroups(1, &more), 0);
    int rc = process_run(&s, &e);
    assert_int_equal(setgroups((size_t)n, mine), 0);
    assert_int_equal(rc, 0);
    read_log(&out);
    assert_memory_equal(out.data, "nobody\n", 7);
    assert_null(strchr(out.data + 7, ' ')); // one group
    assert_string_not_equal(out.data + 7, "0\n");
    buf_release(&out);
}

// ---- what it inherits

static void it_gets_its_descriptors_and_no_others(void **state) {
    (void)state;
    char script[128];
    int kept = open("/dev/null", O_RDONLY | O_CLOEXEC), other = open("/dev/null", O_RDONLY);
    buf out = {0};
    err e = {0};
    snprintf(script, sizeof script,
             "for i in %d %d; do [ -e /proc/self/fd/$i ] && echo has || echo none; done", kept,
             other);
    process_spec s = SHELL(script);
    s.fds[0] = kept;
    s.n_fds = 1;
    assert_int_equal(process_run(&s, &e), 0);
    read_log(&out);
    assert_string_equal(out.data, "has\nnone\n");
    buf_release(&out);
    close(kept);
    close(other);
}

static void it_has_its_own_group_and_no_terminal(void **state) {
    (void)state;
    buf out = {0};
    err e = {0};
    process_spec s = SHELL("read line || echo no input; "
                           "[ $(ps -o pgid= -p $$) -eq $$ ] && echo own group; echo text >&2");
    assert_int_equal(process_run(&s, &e), 0);
    read_log(&out);
    assert_string_equal(out.data, "no input\nown group\ntext\n");
    buf_release(&out);
}

static void no_signal_is_blocked_in_it(void **state) {
    (void)state;
    buf out = {0};
    err e = {0};
    sigset_t set, old;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, &old);
    process_spec s = shell((const char *const[]){"grep", "SigBlk", "/proc/self/status", NULL});
    int rc = process_run(&s, &e);
    sigprocmask(SIG_SETMASK, &old, NULL);
    assert_int_equal(rc, 0);
    read_log(&out);
    assert_string_equal(out.data, "SigBlk:\t0000000000000000\n");
    buf_release(&out);
}

static void the_log_is_appended_and_private(void **state) {
    (void)state;
    buf out = {0};
    err e = {0};
    process_spec s = SHELL("echo one; stat -c %a /proc/self/fd/1 -L");
    assert_int_equal(process_run(&s, &e), 0);
    s.argv = (const char *const[]){"sh", "-c", "echo two", NULL};
    assert_int_equal(process_run(&s, &e), 0);
    read_log(&out);
    assert_string_equal(out.data, "one\n600\ntwo\n");
    buf_release(&out);
}

// ---- ends

static void a_failure_tells_how_and_the_end_of_the_output(void **state) {
    (void)state;
    err e = {0};
    process_spec s = SHELL("echo all went well; echo the disk is full; exit 3");
    assert_int_equal(process_run(&s, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "child exited with status 3"));
    assert_non_null(strstr(e.message, "the disk is full"));
    s = SHELL("kill -9 $$");
    assert_int_equal(process_run(&s, &e), -1);
    assert_non_null(strstr(e.message, "was killed by signal 9 (Killed)"));
}

static void the_tail_of_a_log_begins_at_a_line(void **state) {
    (void)state;
    char path[128];
    buf out = {0}, text = {0};
    err e = {0};
    snprintf(path, sizeof path, "%s/tail.log", test_dir());
    for (int i = 0; i < 500; i++)
        buf_printf(&text, "line %03d\n", i);
    assert_int_equal(file_write_atomic(path, 0600, text.data, text.len, &e), 0);
    process_log_tail(path, 40, &out);
    assert_string_equal(out.data, "line 496\nline 497\nline 498\nline 499\n");
    buf_clear(&out);
    process_log_tail(path, 1 << 20, &out);
    assert_int_equal(out.len, text.len);
    buf_clear(&out);
    process_log_tail("/nonexistent/log", 40, &out);
    assert_int_equal(out.len, 0);
    buf_release(&out);
    buf_release(&text);
}

static bool is_alive(pid_t pid) { return kill(pid, 0) == 0; }

// A parent that is killed: its child hears the signal that was chosen for it.
static void it_ends_with_its_parent(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/ended", test_dir());
    unlink(path);
    char script[256];
    snprintf(script, sizeof script,
             "trap 'echo heard > %s; exit' INT; while :; do sleep 0.05; done", path);
    process_spec s = SHELL(script);
    s.end_signal = SIGINT;
    int ends[2];
    pid_t child = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t parent = fork();
    if (parent == 0) {
        err e = {0};
        if (process_start(&s, &child, &e) || write(ends[1], &child, sizeof child) != sizeof child)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ends[0], &child, sizeof child), sizeof child);
    clock_sleep_ms(200); // the trap is set
    assert_true(is_alive(child));
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    for (int i = 0; i < 400 && !file_exists(path); i++)
        clock_sleep_ms(5);
    assert_true(file_exists(path));
    close(ends[0]);
    close(ends[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_that_is_not_there_is_named),
        cmocka_unit_test(a_file_that_is_no_program_and_a_log_that_cannot_be_made_are_named),
        cmocka_unit_test(an_account_that_is_not_there_is_named),
        cmocka_unit_test(it_runs_as_the_account_without_its_parents_groups),
        cmocka_unit_test(it_gets_its_descriptors_and_no_others),
        cmocka_unit_test(it_has_its_own_group_and_no_terminal),
        cmocka_unit_test(no_signal_is_blocked_in_it),
        cmocka_unit_test(the_log_is_appended_and_private),
        cmocka_unit_test(a_failure_tells_how_and_the_end_of_the_output),
        cmocka_unit_test(the_tail_of_a_log_begins_at_a_line),
        cmocka_unit_test(it_ends_with_its_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
