// Rate headers: the words of a reset, and which of two limits is told.
#include "server/openai_rates.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static void a_reset_is_told_in_whole_units_and_rounded_up(void **state) {
    (void)state;
    static const struct {
        int64_t ms;
        const char *text;
    } rows[] = {{0, "0s"},
                {1, "1s"},
                {1000, "1s"},
                {59001, "1m0s"},
                {360000, "6m0s"},
                {61000, "1m1s"},
                {3600000, "1h0m0s"},
                {86399000, "23h59m59s"},
                {2678400000, "744h0m0s"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[64];
        rates_format_reset(rows[i].ms, text, sizeof text);
        assert_string_equal(text, rows[i].text);
    }
}

static void the_tighter_of_two_is_told_and_none_is_no_limit(void **state) {
    (void)state;
    rates a = {.requests = {-1, 0, 0}, .tokens = {100, 50, 1000}};
    rates b = {.requests = {7, 3, 2000}, .tokens = {200, 20, 3000}};
    rates r = rates_tighter(a, b);
    assert_true(r.requests.limit == 7 && r.requests.left == 3);
    assert_true(r.tokens.limit == 200 && r.tokens.left == 20 && r.tokens.reset_ms == 3000);
    r = rates_tighter(b, a);
    assert_true(r.requests.limit == 7 && r.tokens.limit == 200);
    r = rates_tighter(RATES_NONE, RATES_NONE);
    assert_true(r.requests.limit == -1 && r.tokens.limit == -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reset_is_told_in_whole_units_and_rounded_up),
        cmocka_unit_test(the_tighter_of_two_is_told_and_none_is_no_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
