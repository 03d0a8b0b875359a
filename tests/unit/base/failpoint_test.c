// Failpoints: each test runs this program once more with TIERGATE_FAILPOINTS set and looks at how
// it ends, since the list is read before main.
#include "base/failpoint.h"
#include "base/clock.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define HITS 1000

// Runs itself with the list; the wait status. The child hits "p" HITS times and exits with the
// number of errors, 200 at most.
static int status_with(const char *list) {
    pid_t pid = fork();
    if (pid == 0) {
        setenv("TIERGATE_FAILPOINTS", list, 1);
        close(STDERR_FILENO);
        execl("/proc/self/exe", "failpoint_test", "--hit", NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    if (WIFSTOPPED(status)) {
        kill(pid, SIGKILL);
        int gone;
        waitpid(pid, &gone, 0);
    }
    return status;
}

static int errors_with(const char *list) {
    int status = status_with(list);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int hit_all(void) {
    int n = 0;
    for (int i = 0; i < HITS; i++)
        n += failpoint("p");
    return n < 200 ? n : 200;
}

static void nothing_happens_when_nothing_is_armed(void **state) {
    (void)state;
    assert_int_equal(errors_with(""), 0);
    assert_int_equal(errors_with("another=error"), 0);
}

static void an_error_comes_each_time_or_at_the_time_named(void **state) {
    (void)state;
    assert_int_equal(errors_with("p=error"), 200);
    assert_int_equal(errors_with("p=error@1000"), 1);
    assert_int_equal(errors_with("p=error@1001"), 0);
    assert_int_equal(errors_with("p=error@1,other=kill,p=error@2"), 2);
}

static void a_probability_repeats_with_its_seed(void **state) {
    (void)state;
    int n = errors_with("seed=7,p=error%5");
    assert_in_range(n, 25, 90);
    assert_int_equal(errors_with("p=error%5,seed=7"), n);
}

static void kill_and_stop_are_the_signals(void **state) {
    (void)state;
    int status = status_with("p=kill@3");
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGKILL);
    status = status_with("p=stop@3");
    assert_true(WIFSTOPPED(status));
    assert_int_equal(WSTOPSIG(status), SIGSTOP);
}

static void sleep_takes_its_time(void **state) {
    (void)state;
    int64_t began = clock_mono_ms();
    assert_int_equal(errors_with("p=sleep:60@2"), 0);
    assert_in_range(clock_mono_ms() - began, 60, 30000);
}

static void a_wrong_list_ends_the_process_at_its_start(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "p",        "=kill",      "p=explode", "p=sleep:", "p=sleep:1x", "p=kill@",
        "p=kill@x", "p=error%-1", "p=error,",  "seed=abc", "p=error 1",  "p=error@1@2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (errors_with(wrong[i]) != 1)
            fail_msg("'%s' was taken", wrong[i]);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--hit") == 0)
        return hit_all();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_happens_when_nothing_is_armed),
        cmocka_unit_test(an_error_comes_each_time_or_at_the_time_named),
        cmocka_unit_test(a_probability_repeats_with_its_seed),
        cmocka_unit_test(kill_and_stop_are_the_signals),
        cmocka_unit_test(sleep_takes_its_time),
        cmocka_unit_test(a_wrong_list_ends_the_process_at_its_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
