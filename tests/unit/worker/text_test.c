// From token ids to text: stop strings across token borders, whole characters, and that what is
// held back is a function of the ids alone.
#include "worker/text.h"
#include "tests/support/vocabulary.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static vocabulary v; // 256 bytes by id, then "END" and a control token
static int32_t control;

static int open_vocabulary(void **state) {
    (void)state;
    err e = {0};
    gguf_builder *b = calloc(1, sizeof *b);
    gguf_builder_init(b);
    builder_vocabulary(b,
                       &(vocabulary_parts){.pre = "gpt-2",
                                           .merged = (const char *const[]){"EN", "END", NULL},
                                           .control = (const char *const[]){"<|x|>", NULL},
                                           .merges = (const char *const[]){"E N", "EN D", NULL}});
    if (vocabulary_build(&v, b, &e))
        fail_msg("%s", e.message);
    control = tokenizer_find(v.tokens, "<|x|>");
    gguf_builder_release(b);
    free(b);
    return 0;
}

static int close_vocabulary(void **state) {
    (void)state;
    vocabulary_close(&v);
    return 0;
}

typedef struct told {
    buf text;
    size_t after[256]; // bytes of text after each token
    bool stopped;
    int n; // tokens taken
} told;

// Byte by byte, as if each byte was a token.
static told tell(const char *bytes, size_t n, const char *const *stops, int n_stops, bool flush) {
    told t = {0};
    job_stop list[JOB_STOPS];
    text_stream s;
    for (int i = 0; i < n_stops; i++)
        list[i] = (job_stop){stops[i], strlen(stops[i])};
    text_init(&s, v.tokens, list, n_stops);
    while (t.n < (int)n && !t.stopped) {
        t.stopped = text_add(&s, (uint8_t)bytes[t.n], &t.text);
        t.after[t.n++] = t.text.len;
    }
    if (flush && !t.stopped)
        text_flush(&s, &t.text);
    buf_put_u8(&t.text, 0);
    text_release(&s);
    return t;
}

// The whole text of an answer, and after how many bytes it stopped (-1: not).
static void expect(const char *bytes, const char *stop_a, const char *stop_b, const char *text,
                   int stopped_at) {
    const char *stops[] = {stop_a, stop_b};
    told t = tell(bytes, strlen(bytes), stops, stop_b ? 2 : stop_a ? 1 : 0, true);
    assert_string_equal(t.text.data, text);
    assert_int_equal(t.stopped ? t.n : -1, stopped_at);
    buf_release(&t.text);
}

// ---- stop strings

static void a_stop_string_ends_the_text_before_it(void **state) {
    (void)state;
    expect("hello STOP more", "STOP", NULL, "hello ", 10);
    expect("STOP", "STOP", NULL, "", 4);
    expect("x", "x", NULL, "", 1);
    expect("no end here", "STOP", NULL, "no end here", -1);
}

static void a_beginning_that_leads_nowhere_is_text(void **state) {
    (void)state;
    expect("aSTaSTO", "STOP", NULL, "aSTaSTO", -1);
    expect("ababac", "abac", NULL, "ab", 6); // the match begins inside a failed one
    expect("aaab", "aab", NULL, "a", 4);
    expect("\n\n\n", "\n\n\n\n", NULL, "\n\n\n", -1);
}

static void of_several_stops_the_first_complete_one_counts(void **state) {
    (void)state;
    expect("xabcd", "abcd", "bc", "xa", 4); // "bc" is complete first
    expect("xabcd", "abc", "abcd", "x", 4); // one is the other's beginning
    expect("xabcd", "d", "xy", "xabc", 5);
    expect("xxy", "xy", "xz", "x", 3);
    expect("abx", "abc", "x", "ab", 3);
}

static void what_could_become_a_stop_is_held_back_and_no_more(void **state) {
    (void)state;
    const char *stops[] = {"STOP"};
    told t = tell("aSTb", 4, stops, 1, false);
    assert_int_equal(t.after[0], 1);
    assert_int_equal(t.after[1], 1);
    assert_int_equal(t.after[2], 1);
    assert_int_equal(t.after[3], 4);
    buf_release(&t.text);
}

static void a_stop_in_the_middle_of_a_token_cuts_the_token(void **state) {
    (void)state;
    int32_t end = tokenizer_find(v.tokens, "END");
    job_stop stop = {"N", 1};
    text_stream s;
    buf out = {0};
    text_init(&s, v.tokens, &stop, 1);
    assert_false(text_add(&s, 'a', &out));
    assert_true(text_add(&s, end, &out));
    assert_int_equal(out.len, 2);
    assert_memory_equal(out.data, "aE", 2);
    text_release(&s);
    buf_release(&out);
}

static void a_control_token_adds_nothing_and_breaks_no_stop(void **state) {
    (void)state;
    job_stop stop = {"ab", 2};
    text_stream s;
    buf out = {0};
    text_init(&s, v.tokens, &stop, 1);
    assert_false(text_add(&s, 'a', &out));
    assert_false(text_add(&s, control, &out));
    assert_true(text_add(&s, 'b', &out));
    assert_int_equal(out.len, 0);
    text_release(&s);
    buf_release(&out);
}

// ---- characters

static void a_character_is_told_whole(void **state) {
    (void)state;
    static const char text[] = "a\xc3\xa9\xe5\xbc\xa0\xf0\x9f\x99\x82z";
    told t = tell(text, sizeof text - 1, NULL, 0, false);
    static const size_t after[] = {1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11};
    for (size_t i = 0; i < sizeof after / sizeof *after; i++)
        assert_int_equal(t.after[i], after[i]);
    assert_string_equal(t.text.data, text);
    buf_release(&t.text);
}

static void a_stop_of_many_byte_characters_is_found_at_any_split(void **state) {
    (void)state;
    expect("caf\xc3\xa9 ol\xc3\xa9", "\xc3\xa9", NULL, "caf", 5);
    expect("\xc3\xa8\xc3\xa9", "\xc3\xa9", NULL, "\xc3\xa8", 4); // the same first byte
    expect("\xe5\xbc\xa0\xe5\xbc\xa1", "\xe5\xbc\xa1", NULL, "\xe5\xbc\xa0", 6);
    expect("a\xe2\x80\xa6", "\xe2\x80\xa6", NULL, "a", 4);
}

static void what_is_no_utf8_becomes_a_replacement_character(void **state) {
    (void)state;
    expect("a\xff"
           "b",
           NULL, NULL,
           "a\xef\xbf\xbd"
           "b",
           -1);
    expect("a\xe2\x82", NULL, NULL, "a\xef\xbf\xbd\xef\xbf\xbd", -1); // cut off at the end
    expect("\xc3\xc3\xa9", NULL, NULL, "\xef\xbf\xbd\xc3\xa9", -1);
    expect("\xed\xa0\x80", NULL, NULL, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", -1); // a surrogate
    expect("\xf0\x9fSTOP", "STOP", NULL, "\xef\xbf\xbd\xef\xbf\xbd", 6);
}

// ---- a function of the ids alone

static bool is_utf8(const char *p, size_t n) { return utf8_whole(p, n) == n; }

static uint32_t draw(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33);
}

// What a plain search over the whole text says: where the answer ends, and with what.
static size_t oracle(const char *bytes, size_t n, const char *const *stops, int n_stops,
                     bool *stopped) {
    for (size_t end = 1; end <= n; end++) {
        size_t first = SIZE_MAX;
        for (int i = 0; i < n_stops; i++) {
            const char *at = memmem(bytes, end, stops[i], strlen(stops[i]));
            if (at && (size_t)(at - bytes) < first)
                first = (size_t)(at - bytes);
        }
        if (first != SIZE_MAX) {
            *stopped = true;
            return first;
        }
    }
    *stopped = false;
    return n;
}

static void random_texts_agree_with_a_search_of_the_whole(void **state) {
    (void)state;
    static const char *const sets[][3] = {{"aab", "aba", "b\xc3\xa9"},
                                          {"\xc3\xa9", "\xc3\xa9\xc3\xa9\xc3\xa8", "aa"},
                                          {"a", "bbbb", "ab"}};
    static const char *const letters[] = {"a", "b", "\xc3\xa9", "\xc3\xa8"};
    uint64_t seed = 1;
    for (int round = 0; round < 3000; round++) {
        char bytes[64];
        size_t n = 0;
        while (n < 40) {
            const char *l = letters[draw(&seed) % 4];
            memcpy(bytes + n, l, strlen(l));
            n += strlen(l);
        }
        const char *const *stops = sets[round % 3];
        bool stopped;
        size_t end = oracle(bytes, n, stops, 3, &stopped);
        told t = tell(bytes, n, stops, 3, true);
        assert_int_equal(t.stopped, stopped);
        assert_int_equal(t.text.len - 1, end);
        assert_memory_equal(t.text.data, bytes, end);
        buf_release(&t.text);
    }
}

// An attempt that goes on after k tokens replays them: from there on it tells what the undisturbed
// one tells, piece by piece.
static void a_replay_leaves_the_same_state_at_every_split(void **state) {
    (void)state;
    static const char *const stops[] = {"STOP", "\xc3\xa9\xc3\xa9"};
    static const char bytes[] = "aSTSTO\xc3\xa9\xc3\xa8S\xf0\x9f\x99\x82\xff\xe2\x82xSTOSTOP tail";
    job_stop list[] = {{stops[0], 4}, {stops[1], 4}};
    told whole = tell(bytes, sizeof bytes - 1, stops, 2, true);
    for (int split = 0; split < whole.n; split++) {
        text_stream s;
        buf before = {0}, after = {0};
        text_init(&s, v.tokens, list, 2);
        for (int i = 0; i < split; i++)
            assert_false(text_add(&s, (uint8_t)bytes[i], &before));
        size_t known = split ? whole.after[split - 1] : 0;
        assert_int_equal(before.len, known);
        for (int i = split; i < whole.n; i++) {
            text_add(&s, (uint8_t)bytes[i], &after);
            assert_int_equal(known + after.len, whole.after[i]);
            assert_true(is_utf8(after.data ? after.data : "", after.len));
        }
        text_release(&s);
        buf_release(&before);
        buf_release(&after);
    }
    buf_release(&whole.text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_string_ends_the_text_before_it),
        cmocka_unit_test(a_beginning_that_leads_nowhere_is_text),
        cmocka_unit_test(of_several_stops_the_first_complete_one_counts),
        cmocka_unit_test(what_could_become_a_stop_is_held_back_and_no_more),
        cmocka_unit_test(a_stop_in_the_middle_of_a_token_cuts_the_token),
        cmocka_unit_test(a_control_token_adds_nothing_and_breaks_no_stop),
        cmocka_unit_test(a_character_is_told_whole),
        cmocka_unit_test(a_stop_of_many_byte_characters_is_found_at_any_split),
        cmocka_unit_test(what_is_no_utf8_becomes_a_replacement_character),
        cmocka_unit_test(random_texts_agree_with_a_search_of_the_whole),
        cmocka_unit_test(a_replay_leaves_the_same_state_at_every_split),
    };
    return cmocka_run_group_tests(tests, open_vocabulary, close_vocabulary);
}
