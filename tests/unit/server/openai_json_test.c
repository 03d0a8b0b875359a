// JSON with what is refused before and by the parser. The table of openai_request_test.c has more.
#include "server/openai_json.h"
#include "base/buf.h"
#include "server/openai_text.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static int parse(const char *s, size_t n, int depth, err *e) {
    json_t *root = NULL;
    *e = (err){0};
    int rc = openai_json_parse(s, n, depth, &root, e);
    json_decref(root);
    return rc;
}

// {"a":[[[...]]]} of a depth.
static void put_nested(buf *b, int depth, char open, char close) {
    buf_puts(b, "{\"a\":");
    for (int i = 1; i < depth; i++)
        buf_puts(b, open == '[' ? "[" : "{\"b\":");
    buf_puts(b, "1");
    for (int i = 1; i < depth; i++)
        buf_put(b, &close, 1);
    buf_puts(b, "}");
}

static void depth_64_passes_and_65_does_not(void **state) {
    (void)state;
    for (int depth = 63; depth <= 66; depth++)
        for (int kind = 0; kind < 2; kind++) {
            buf b = {0};
            err e;
            put_nested(&b, depth, kind ? '[' : '{', kind ? ']' : '}');
            assert_int_equal(parse(b.data, b.len, 64, &e), depth <= 64 ? 0 : -1);
            if (depth > 64)
                assert_non_null(strstr(e.message, "deeper than 64"));
            buf_release(&b);
        }
}

static void a_million_brackets_are_refused_by_depth(void **state) {
    (void)state;
    buf b = {0};
    err e;
    buf_puts(&b, "{\"a\":");
    memset(buf_extend(&b, 1000000), '[', 1000000);
    assert_int_equal(parse(b.data, b.len, 64, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    buf_release(&b);
}

static void brackets_inside_strings_do_not_count(void **state) {
    (void)state;
    err e;
    static const char s[] = "{\"a\":\"[[[[[[{{{{{{\\\"[[[[\",\"b[[[[\":1}";
    assert_int_equal(parse(s, sizeof s - 1, 2, &e), 0);
}

static void every_cut_of_a_body_is_refused(void **state) {
    (void)state;
    static const char s[] =
        "{\"a\":[1,2.5e3,{\"b\":\"x\\ud83d\\ude00\\n\xe2\x82\xac\"}],\"c\":null,\"d\":true}";
    err e;
    assert_int_equal(parse(s, sizeof s - 1, 8, &e), 0);
    for (size_t n = 0; n < sizeof s - 1; n++)
        assert_int_equal(parse(s, n, 8, &e), -1);
}

static void a_raw_nul_is_refused(void **state) {
    (void)state;
    err e;
    assert_int_equal(parse("{\"a\":\"b\0c\"}", 11, 8, &e), -1);
    assert_int_equal(parse("{\"a\":1}\0", 8, 8, &e), -1);
    assert_int_equal(parse("{\"a\0b\":1}", 9, 8, &e), -1);
}

static void the_byte_and_the_member_are_named(void **state) {
    (void)state;
    err e;
    static const char s[] = "{\"a\":[{\"b\":\"ok\"},{\"b\":\"x\\udead\"}]}";
    assert_int_equal(parse(s, sizeof s - 1, 8, &e), -1);
    assert_string_equal(e.param, "a[1].b");
    assert_non_null(strstr(e.message, "surrogate"));
    assert_non_null(strstr(e.message, "byte 24"));
}

static void a_pair_of_surrogates_is_one_character(void **state) {
    (void)state;
    json_t *root = NULL;
    err e = {0};
    static const char s[] = "{\"a\":\"\\uD83D\\uDE00\"}";
    assert_int_equal(openai_json_parse(s, sizeof s - 1, 8, &root, &e), 0);
    assert_string_equal(json_string_value(json_object_get(root, "a")), "\xf0\x9f\x98\x80");
    json_decref(root);
}

static void long_paths_are_cut_with_a_mark(void **state) {
    (void)state;
    json_path p = {"a"};
    for (int i = 0; i < 40; i++)
        p = json_path_member(p.text, "abcdef");
    assert_int_equal(strlen(p.text), sizeof p.text - 1);
    assert_int_equal(p.text[sizeof p.text - 2], '~');
    assert_string_equal(json_path_element("a", 7).text, "a[7]");
    assert_string_equal(json_path_member("", "b").text, "b");
}

static void text_that_is_no_utf8_is_replaced_byte_by_byte(void **state) {
    (void)state;
    buf b = {0};
    text_put_json(&b,
                  "a\xe2\x82"
                  "b\"\xff",
                  6);
    assert_string_equal(b.data, "\"a\xef\xbf\xbd\xef\xbf\xbd"
                                "b\\\"\xef\xbf\xbd\"");
    buf_clear(&b);
    text_put_byte_array(&b, "\xe2\x82\x00", 3);
    assert_string_equal(b.data, "[226,130,0]");
    buf_release(&b);
}

static void parts_of_a_character_count_once(void **state) {
    (void)state;
    assert_int_equal(text_count_characters("a\xe2\x82\xac"
                                           "b",
                                           5),
                     3);
    assert_int_equal(text_count_characters("\xe2", 1) + text_count_characters("\x82\xac", 2), 1);
}

static void utf8_is_judged_as_rfc_3629_says(void **state) {
    (void)state;
    static const char *const good[] = {"",
                                       "a",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82",
                                      "\xc2",
                                      "\xc2"
                                      "a",
                                      "\xff"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(text_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(text_is_utf8(bad[i], strlen(bad[i])));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(depth_64_passes_and_65_does_not),
        cmocka_unit_test(a_million_brackets_are_refused_by_depth),
        cmocka_unit_test(brackets_inside_strings_do_not_count),
        cmocka_unit_test(every_cut_of_a_body_is_refused),
        cmocka_unit_test(a_raw_nul_is_refused),
        cmocka_unit_test(the_byte_and_the_member_are_named),
        cmocka_unit_test(a_pair_of_surrogates_is_one_character),
        cmocka_unit_test(long_paths_are_cut_with_a_mark),
        cmocka_unit_test(text_that_is_no_utf8_is_replaced_byte_by_byte),
        cmocka_unit_test(parts_of_a_character_count_once),
        cmocka_unit_test(utf8_is_judged_as_rfc_3629_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
