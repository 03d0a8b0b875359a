// Amounts as people write and read them.
#include "base/money.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static const struct {
    const char *text;
    int64_t nano;
    const char *again; // as it is printed
} amounts[] = {
    {"0", 0, "0.00"},
    {"12", 12000000000, "12.00"},
    {"12.5", 12500000000, "12.50"},
    {"0.000000003", 3, "0.000000003"},
    {"1.23456789", 1234567890, "1.23456789"},
    {"9007199.254740991", MONEY_MOST, "9007199.254740991"},
};

static void what_is_written_is_read_back(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof amounts / sizeof *amounts; i++) {
        int64_t nano;
        char text[MONEY_TEXT];
        assert_int_equal(money_parse(amounts[i].text, &nano, NULL), 0);
        assert_int_equal(nano, amounts[i].nano);
        money_format(nano, text);
        assert_string_equal(text, amounts[i].again);
    }
}

static void what_is_no_amount_is_refused_with_itself_in_the_message(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      ".",
                                      "1.",
                                      ".5",
                                      "-1",
                                      "1e3",
                                      "1,5",
                                      " 1",
                                      "0.0000000001",
                                      "9007199.254740992",
                                      "x",
                                      "9007200",
                                      "1.2.3",
                                      "99999999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t nano;
        err e = {0};
        assert_int_equal(money_parse(bad[i], &nano, &e), -1);
        assert_non_null(strstr(e.message, bad[i]));
    }
}

static void the_largest_numbers_can_be_printed(void **state) {
    (void)state;
    char text[MONEY_TEXT];
    money_format(INT64_MAX, text);
    assert_string_equal(text, "9223372036.854775807");
    money_format(-1500000000, text);
    assert_string_equal(text, "-1.50");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(what_is_no_amount_is_refused_with_itself_in_the_message),
        cmocka_unit_test(the_largest_numbers_can_be_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
