// Options of the commands: parsing and what is said about a wrong one.
#include "cli/options.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static bool flag;
static const char *text;
static int64_t number;
static option_list list;
static const char *words[2];
static int n_words;
static bool help;
static err e;

static const option_row rows[] = {
    {"flag", OPTION_FLAG, &flag, NULL, "a flag"},
    {"text", OPTION_TEXT, &text, "TEXT", "a text"},
    {"number", OPTION_INT, &number, "N", "a number"},
    {"list", OPTION_LIST, &list, "ITEM", "repeatable"},
};

static int parse(const char *line) {
    static char copy[2048];
    char *argv[256], *save = NULL;
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    flag = false;
    text = NULL;
    number = -7;
    list.n = 0;
    e = (err){0};
    return options_parse(rows, 4, argc, argv, words, 2, &n_words, &help, &e);
}

static void refuse(const char *line, const char *param, const char *says) {
    assert_int_equal(parse(line), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, param);
    if (!strstr(e.message, says))
        fail_msg("%s: '%s' does not say '%s'", line, e.message, says);
}

static void values_stand_behind_a_space_or_an_equals_sign(void **state) {
    (void)state;
    assert_int_equal(parse("--text a --number=-12 --flag --list x --list=y=z"), 0);
    assert_string_equal(text, "a");
    assert_int_equal(number, -12);
    assert_true(flag);
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[0], "x");
    assert_string_equal(list.items[1], "y=z");
    assert_int_equal(n_words, 0);
    assert_false(help);
    assert_int_equal(parse("--text="), 0);
    assert_string_equal(text, "");
}

static void the_last_of_a_single_option_counts(void **state) {
    (void)state;
    assert_int_equal(parse("--text a --text b"), 0);
    assert_string_equal(text, "b");
}

static void words_may_stand_anywhere_and_are_counted(void **state) {
    (void)state;
    assert_int_equal(parse("one --flag two"), 0);
    assert_int_equal(n_words, 2);
    assert_string_equal(words[0], "one");
    assert_string_equal(words[1], "two");
    refuse("one two three", "three", "one word too many");
}

static void help_ends_the_parsing(void **state) {
    (void)state;
    assert_int_equal(parse("--help --nonsense"), 0);
    assert_true(help);
    assert_int_equal(parse("--flag -h"), 0);
    assert_true(help);
}

static void a_wrong_option_is_named(void **state) {
    (void)state;
    refuse("--nonsense", "--nonsense", "unknown option --nonsense");
    refuse("--nonsense=3", "--nonsense=3", "unknown option --nonsense");
    refuse("--tex a", "--tex", "unknown option --tex"); // no abbreviations
    refuse("--flag=yes", "flag", "takes no value");
    refuse("--text", "text", "--text needs a value: --text TEXT");
    refuse("--number 1x", "number", "whole number, not '1x'");
    refuse("--number=", "number", "whole number");
    refuse("--number 99999999999999999999", "number", "whole number");
}

static void a_list_has_an_end(void **state) {
    (void)state;
    char line[2048] = "";
    for (int i = 0; i < 64; i++)
        strcat(line, "--list x ");
    assert_int_equal(parse(line), 0);
    assert_int_equal(list.n, 64);
    strcat(line, "--list x");
    refuse(line, "list", "more than 64 times");
}

static void help_tells_every_option(void **state) {
    (void)state;
    buf out = {0};
    options_help(rows, 4, &out);
    for (int i = 0; i < 4; i++)
        assert_non_null(strstr(out.data, rows[i].help));
    assert_non_null(strstr(out.data, "--number N"));
    buf_release(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_stand_behind_a_space_or_an_equals_sign),
        cmocka_unit_test(the_last_of_a_single_option_counts),
        cmocka_unit_test(words_may_stand_anywhere_and_are_counted),
        cmocka_unit_test(help_ends_the_parsing),
        cmocka_unit_test(a_wrong_option_is_named),
        cmocka_unit_test(a_list_has_an_end),
        cmocka_unit_test(help_tells_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
