// The tokenizer's rules on small vocabularies: what merges, what is a control token to whom, what
// a file may not say. Exactness against Hugging Face: tokenizer_golden_test.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "tests/support/vocabulary.h"

#define FIRST 256 // id of the first token after the bytes

static const char *const words[] = {"he",      "ll",        "llo", "hello",
                                    "\u0120t", "\u0120the", "xhe", NULL};
enum { HE = FIRST, LL, LLO, HELLO, T, THE, XHE, END, START, TOOL };
static const char *const control[] = {"<|im_end|>", "<|im_start|>", NULL};
static const char *const user_defined[] = {"<tool>", NULL};
static const char *const merges[] = {"h e",      "l l",        "ll o", "he llo",
                                     "\u0120 t", "\u0120t he", NULL};
static const vocabulary_parts standard = {"gpt-2", words, control, user_defined, merges};

static void open_parts(vocabulary *v, const vocabulary_parts *p) {
    gguf_builder b;
    err e = {0};
    gguf_builder_init(&b);
    builder_vocabulary(&b, p);
    if (vocabulary_build(v, &b, &e))
        fail_msg("%s", e.message);
    gguf_builder_release(&b);
}

static void check_encode(const tokenizer *t, const char *text, bool trusted, const int32_t *ids,
                         size_t n) {
    token_list l = {0};
    err e = {0};
    if (tokenizer_encode(t, text, strlen(text), trusted, &l, &e))
        fail_msg("%s", e.message);
    assert_int_equal(l.n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(l.ids[i], ids[i]);
    token_list_release(&l);
}

#define ENCODES(t, text, trusted, ...)                                                             \
    check_encode(t, text, trusted, (const int32_t[]){__VA_ARGS__},                                 \
                 sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void the_lowest_rank_merges_first_and_of_equal_ones_the_leftmost(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    ENCODES(v.tokens, "hello the", false, HELLO, THE);
    ENCODES(v.tokens, "hell", false, HE, LL);
    ENCODES(v.tokens, "lll", false, LL, 'l');
    ENCODES(v.tokens, "llll", false, LL, LL);
    ENCODES(v.tokens, "xhe", false, 'x', HE); // a token that no merge makes
    check_encode(v.tokens, "", true, NULL, 0);
    vocabulary_close(&v);
}

// Words over 40 bytes go another way; both must agree.
static void long_words_merge_as_short_ones_do(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    for (size_t n = 1; n < 60; n++) {
        char text[512] = "";
        int32_t wanted[64];
        for (size_t i = 0; i < n; i++) {
            strcat(text, "hello");
            wanted[i] = HELLO;
        }
        check_encode(v.tokens, text, false, wanted, n);
        strcat(text, "ll");
        wanted[n] = LL;
        check_encode(v.tokens, text, false, wanted, n + 1);
    }
    vocabulary_close(&v);
}

static void ignored_merges_take_a_whole_word_that_is_a_token(void **state) {
    (void)state;
    vocabulary v;
    gguf_builder b;
    err e = {0};
    vocabulary_parts p = standard;
    p.pre = "llama-bpe";
    gguf_builder_init(&b);
    builder_vocabulary(&b, &p);
    builder_u32(&b, "tokenizer.ggml.bos_token_id", START);
    assert_int_equal(vocabulary_build(&v, &b, &e), 0);
    ENCODES(v.tokens, "xhe", false, XHE);
    assert_true(tokenizer_adds_bos(v.tokens)); // unless the file says otherwise
    vocabulary_close(&v);
    gguf_builder_release(&b);
}

// The real vocabularies of the goldens have no token of two digits.
static void digits_stand_together_as_each_family_has_it(void **state) {
    (void)state;
    static const char *const numbers[] = {"12", "34", "1234",
                                          "\u0120"
                                          "1234",
                                          NULL};
    static const char *const joins[] = {"1 2", "3 4", "12 34", "\u0120 1234", NULL};
    enum { N12 = FIRST, N34, N1234, SPACE_N1234 };
    vocabulary v;
    vocabulary_parts p = {"gpt-2", numbers, NULL, NULL, joins};
    open_parts(&v, &p);
    ENCODES(v.tokens, " 1234x1234", false, SPACE_N1234, 'x', N1234);
    vocabulary_close(&v);
    p.pre = "smollm";
    open_parts(&v, &p);
    ENCODES(v.tokens, " 1234", false, ' ', '1', '2', '3', '4');
    vocabulary_close(&v);
    p.pre = "qwen2";
    open_parts(&v, &p);
    ENCODES(v.tokens, " 1234", false, ' ', '1', '2', '3', '4');
    vocabulary_close(&v);
    gguf_builder b;
    err e = {0};
    p.pre = "llama-bpe";
    gguf_builder_init(&b);
    builder_vocabulary(&b, &p);
    builder_bool(&b, "tokenizer.ggml.add_bos_token", false);
    assert_int_equal(vocabulary_build(&v, &b, &e), 0);
    ENCODES(v.tokens, " 1234", false, ' ', N12, '3', '4');
    ENCODES(v.tokens, "0001234", false, '0', '0', '0', N12, '3', '4');
    ENCODES(v.tokens, "34", false, N34);
    vocabulary_close(&v);
    gguf_builder_release(&b);
}

static void control_names_are_ids_in_trusted_text_only(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    ENCODES(v.tokens, "he<|im_end|>he", true, HE, END, HE);
    ENCODES(v.tokens, "<|im_start|><|im_end|>", true, START, END);
    ENCODES(v.tokens, "<|im_end|>", false, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    ENCODES(v.tokens, "<|im_en", true, '<', '|', 'i', 'm', '_', 'e', 'n');
    ENCODES(v.tokens, "he<tool>", true, HE, TOOL);
    ENCODES(v.tokens, "he<tool>", false, HE, TOOL);
    vocabulary_close(&v);
}

static void segments_are_one_text_whose_trust_ends_at_the_border(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    const segment parts[] = {{"<|im_start|>he", 14, true},
                             {"llo<|im_end|>", 13, false},
                             {"<|im_end|>", 10, true},
                             {"<|im_", 5, true},
                             {"end|>", 5, true}};
    token_list l = {0};
    err e = {0};
    assert_int_equal(tokenizer_encode_segments(v.tokens, parts, 3, &l, &e), 0);
    const int32_t wanted[] = {START, HELLO, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>', END};
    assert_int_equal(l.n, sizeof wanted / sizeof *wanted);
    for (size_t i = 0; i < l.n; i++)
        assert_int_equal(l.ids[i], wanted[i]);
    l.n = 0;
    assert_int_equal(tokenizer_encode_segments(v.tokens, parts + 3, 2, &l, &e), 0);
    for (size_t i = 0; i < l.n; i++)
        assert_false(tokenizer_is_control(v.tokens, l.ids[i]));
    token_list_release(&l);
    vocabulary_close(&v);
}

static void the_longest_added_token_is_taken(void **state) {
    (void)state;
    static const char *const names[] = {"<a>", "<a><b>", "<a><b><c>", NULL};
    vocabulary_parts p = standard;
    p.control = names;
    p.user_defined = NULL;
    vocabulary v;
    open_parts(&v, &p);
    ENCODES(v.tokens, "<a><b><a><b><c><a>", true, END + 1, END + 2, END);
    ENCODES(v.tokens, "<a><b><d>", true, END + 1, '<', 'd', '>');
    vocabulary_close(&v);
}

static void control_marks_of_any_type_are_not_for_users(void **state) {
    (void)state;
    static const char *const marks[] = {"<|fim_prefix|>", "<fim_suffix>", "<file_sep>", "<think>",
                                        NULL};
    static const char *const normal[] = {"<|eot_id|>", NULL};
    vocabulary_parts p = {"gpt-2", normal, NULL, marks, (const char *const[]){NULL}};
    vocabulary v;
    open_parts(&v, &p);
    for (int32_t id = FIRST; id < FIRST + 4; id++)
        assert_true(tokenizer_is_control(v.tokens, id));
    assert_false(tokenizer_is_control(v.tokens, FIRST + 4));
    ENCODES(v.tokens, "<|eot_id|>", true, FIRST);
    token_list l = {0};
    err e = {0};
    const char *text = "<|fim_prefix|><fim_suffix><file_sep><|eot_id|>";
    assert_int_equal(tokenizer_encode(v.tokens, text, strlen(text), false, &l, &e), 0);
    assert_int_equal(l.n, strlen(text));
    token_list_release(&l);
    vocabulary_close(&v);
}

static void pieces_are_bytes_and_control_names_on_request(void **state) {
    (void)state;
    vocabulary v;
    size_t n;
    open_parts(&v, &standard);
    for (int32_t byte = 0; byte < 256; byte++) {
        const char *p = tokenizer_piece(v.tokens, byte, false, &n);
        assert_int_equal(n, 1);
        assert_int_equal((unsigned char)*p, byte);
    }
    const char *the = tokenizer_piece(v.tokens, THE, false, &n);
    assert_int_equal(n, 4);
    assert_memory_equal(the, " the", 4);
    tokenizer_piece(v.tokens, END, false, &n);
    assert_int_equal(n, 0);
    const char *end = tokenizer_piece(v.tokens, END, true, &n);
    assert_int_equal(n, 10);
    assert_memory_equal(end, "<|im_end|>", 10);
    for (int32_t id = -1; id <= TOOL + 1; id += TOOL + 2) { // outside
        tokenizer_piece(v.tokens, id, true, &n);
        assert_int_equal(n, 0);
        assert_false(tokenizer_is_control(v.tokens, id) || tokenizer_is_end(v.tokens, id));
    }
    vocabulary_close(&v);
}

static void tokens_are_found_by_their_exact_name(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    assert_int_equal(tokenizer_n_vocab(v.tokens), TOOL + 1);
    assert_int_equal(tokenizer_find(v.tokens, "<|im_end|>"), END);
    assert_int_equal(tokenizer_find(v.tokens, "\u0120the"), THE);
    assert_int_equal(tokenizer_find(v.tokens, " the"), -1);
    assert_int_equal(tokenizer_find(v.tokens, ""), -1);
    assert_true(tokenizer_is_end(v.tokens, END)); // by its name alone
    assert_false(tokenizer_is_end(v.tokens, START));
    assert_int_equal(tokenizer_bos(v.tokens), -1);
    vocabulary_close(&v);
}

static void bytes_a_vocabulary_lacks_are_dropped(void **state) {
    (void)state;
    gguf_builder b;
    vocabulary v;
    err e = {0};
    gguf_builder_init(&b);
    builder_vocabulary(&b, &standard);
    built_key *tokens = builder_key(&b, "tokenizer.ggml.tokens");
    char name[4];
    byte_name(4, name);
    char *at = memmem(tokens->value.data, tokens->value.len, name, 2);
    assert_non_null(at);
    memcpy(at, "\u05d0", 2); // the byte 4 has no token now
    assert_int_equal(vocabulary_build(&v, &b, &e), 0);
    ENCODES(v.tokens, "he\x04ll", false, HE, LL);
    check_encode(v.tokens, "\x04\x04", false, NULL, 0);
    vocabulary_close(&v);
    gguf_builder_release(&b);
}

// A token that is longer than what is looked up whole is found by its merges.
static void a_very_long_token_is_made_by_its_merges(void **state) {
    (void)state;
    static char powers[12][2049];
    static char joins[11][2050];
    const char *words_of_a[12] = {NULL}, *merges_of_a[12] = {NULL};
    for (size_t i = 0; i < 11; i++) {
        memset(powers[i], 'a', 2u << i);
        memset(joins[i], 'a', (2u << i) + 1);
        joins[i][1u << i] = ' ';
        words_of_a[i] = powers[i];
        merges_of_a[i] = joins[i];
    }
    const vocabulary_parts p = {"gpt-2", words_of_a, NULL, NULL, merges_of_a};
    vocabulary v;
    open_parts(&v, &p);
    ENCODES(v.tokens, powers[10], false, FIRST + 10);
    ENCODES(v.tokens, powers[9], false, FIRST + 9);
    vocabulary_close(&v);
}

typedef struct thread_work {
    const tokenizer *t;
    bool same;
} thread_work;

static void *encode_often(void *arg) {
    thread_work *w = arg;
    const char *text = "hello the <|im_end|> 123 hellohellohellohellohellohellohellohellohellohe";
    token_list first = {0};
    w->same = !tokenizer_encode(w->t, text, strlen(text), true, &first, NULL);
    for (int i = 0; i < 200; i++) {
        token_list l = {0};
        w->same &= !tokenizer_encode(w->t, text, strlen(text), true, &l, NULL) && l.n == first.n &&
                   !memcmp(l.ids, first.ids, l.n * sizeof *l.ids);
        token_list_release(&l);
    }
    token_list_release(&first);
    return NULL;
}

static void one_tokenizer_serves_many_threads(void **state) {
    (void)state;
    vocabulary v;
    open_parts(&v, &standard);
    pthread_t threads[4];
    thread_work work[4];
    for (size_t i = 0; i < 4; i++) {
        work[i] = (thread_work){v.tokens, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &work[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(work[i].same);
    }
    vocabulary_close(&v);
}

static void text_that_is_not_utf8_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"\xff",         "a\x80",           "\xc3",
                                      "\xed\xa0\x80", "\xc0\xaf",        "\xf4\x90\x80\x80",
                                      "\xe2\x82",     "\xf0\x80\x80\x80"};
    vocabulary v;
    open_parts(&v, &standard);
    token_list l = {0};
    token_list_push(&l, 7);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = {0};
        assert_int_equal(tokenizer_encode(v.tokens, bad[i], strlen(bad[i]), false, &l, &e), -1);
        assert_int_equal(e.code, ERR_INVALID);
        assert_int_equal(l.n, 1);
    }
    token_list_release(&l);
    vocabulary_close(&v);
}

static void a_stream_is_cut_before_an_unfinished_character(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n, whole;
    } cases[] = {
        {"", 0, 0},
        {"abc", 3, 3},
        {"a\xc3", 2, 1},
        {"a\xc3\xa9", 3, 3},
        {"\xe4\xbd", 2, 0},
        {"\xe4\xbd\xa0", 3, 3},
        {"x\xf0\x9f\x98", 4, 1},
        {"x\xf0\x9f", 3, 1},
        {"x\xf0", 2, 1},
        {"\xf0\x9f\x98\x80", 4, 4},
        {"\x80", 1, 1},             // invalid bytes are whole
        {"\xff", 1, 1},             //
        {"\xc0", 1, 1},             // never starts a character
        {"\xf5", 1, 1},             //
        {"\xe0\x80", 2, 2},         // overlong
        {"\xed\xa0", 2, 2},         // a surrogate
        {"\xf4\x90", 2, 2},         // over U+10FFFF
        {"\xf0\x8f", 2, 2},         // overlong
        {"\xe0\xa0", 2, 0},         //
        {"\xc3\xc3", 2, 1},         // the first is invalid, the second unfinished
        {"\xa9\xa9\xa9\xa9", 4, 4}, //
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_whole(cases[i].text, cases[i].n), cases[i].whole);
}

// ---- files that say something impossible

static void check_refused(const gguf_builder *b, err_code code, const char *word) {
    vocabulary v;
    err e = {0};
    if (!vocabulary_build(&v, b, &e))
        fail_msg("accepted, but: %s", word);
    assert_int_equal(e.code, code);
    if (!strstr(e.message, word))
        fail_msg("\"%s\" does not say %s", e.message, word);
}

typedef void change(gguf_builder *b);
static void no_tokens(gguf_builder *b) { builder_remove_key(b, "tokenizer.ggml.tokens"); }
static void no_types(gguf_builder *b) { builder_remove_key(b, "tokenizer.ggml.token_type"); }
static void no_merges(gguf_builder *b) { builder_remove_key(b, "tokenizer.ggml.merges"); }
static void no_model(gguf_builder *b) { builder_remove_key(b, "tokenizer.ggml.model"); }
static void no_pre(gguf_builder *b) { builder_remove_key(b, "tokenizer.ggml.pre"); }
static void spm(gguf_builder *b) { builder_string(b, "tokenizer.ggml.model", "llama"); }
static void unknown_pre(gguf_builder *b) { builder_string(b, "tokenizer.ggml.pre", "default"); }
static void empty_tokens(gguf_builder *b) { builder_strings(b, "tokenizer.ggml.tokens", NULL, 0); }
static void numbers(gguf_builder *b) {
    builder_i32s(b, "tokenizer.ggml.tokens", (const int32_t[]){1}, 1);
}
static void few_types(gguf_builder *b) {
    builder_i32s(b, "tokenizer.ggml.token_type", (const int32_t[]){1}, 1);
}
static void set_type(gguf_builder *b, int32_t id, int32_t type) {
    built_key *k = builder_key(b, "tokenizer.ggml.token_type");
    memcpy(k->value.data + 12 + 4 * id, &type, sizeof type);
}
static void odd_type(gguf_builder *b) { set_type(b, 3, 9); }
static void negative_type(gguf_builder *b) { set_type(b, 3, -1); }
static void control_byte(gguf_builder *b) { set_type(b, 'a', 3); }
static void control_merge(gguf_builder *b) { set_type(b, HELLO, 3); }
static void one_merge(gguf_builder *b, const char *text) {
    builder_strings(b, "tokenizer.ggml.merges", &text, 1);
}
static void merge_of_nothing(gguf_builder *b) { one_merge(b, ""); }
static void merge_without_space(gguf_builder *b) { one_merge(b, "he"); }
static void merge_without_right(gguf_builder *b) { one_merge(b, "h "); }
static void merge_without_left(gguf_builder *b) { one_merge(b, " h"); }
static void merge_of_strangers(gguf_builder *b) { one_merge(b, "zz y"); }
static void merge_to_a_stranger(gguf_builder *b) { one_merge(b, "h h"); }
static void duplicate(gguf_builder *b) {
    built_key *k = builder_key(b, "tokenizer.ggml.tokens");
    char *at = memmem(k->value.data, k->value.len, "xhe", 3);
    memcpy(at, "llo", 3);
}
static void broken_name(gguf_builder *b) {
    built_key *k = builder_key(b, "tokenizer.ggml.tokens");
    char *at = memmem(k->value.data, k->value.len, "xhe", 3);
    memcpy(at, "\xff\xfe\xfd", 3);
}
static void bos_outside(gguf_builder *b) { builder_u32(b, "tokenizer.ggml.bos_token_id", 99999); }
static void eos_outside(gguf_builder *b) { builder_u32(b, "tokenizer.ggml.eos_token_id", 99999); }
static void eos_text(gguf_builder *b) { builder_string(b, "tokenizer.ggml.eos_token_id", "x"); }
static void bos_wanted(gguf_builder *b) { builder_bool(b, "tokenizer.ggml.add_bos_token", true); }
static void bos_number(gguf_builder *b) { builder_u32(b, "tokenizer.ggml.add_bos_token", 1); }

static void impossible_metadata_is_refused_by_name(void **state) {
    (void)state;
    static const struct {
        change *change;
        err_code code;
        const char *word;
    } cases[] = {
        {no_tokens, ERR_FORMAT, "tokenizer.ggml.tokens is missing"},
        {numbers, ERR_FORMAT, "not an array of strings"},
        {empty_tokens, ERR_FORMAT, "has 0 tokens"},
        {no_types, ERR_FORMAT, "tokenizer.ggml.token_type is missing"},
        {few_types, ERR_FORMAT, "another length than the 266 tokens"},
        {odd_type, ERR_FORMAT, "token 3 has no known type"},
        {negative_type, ERR_FORMAT, "token 3 has no known type"},
        {no_merges, ERR_FORMAT, "tokenizer.ggml.merges is missing"},
        {no_model, ERR_FORMAT, "tokenizer.ggml.model is missing"},
        {spm, ERR_UNSUPPORTED, "\"llama\" is not supported"},
        {no_pre, ERR_UNSUPPORTED, "tokenizer.ggml.pre is missing"},
        {unknown_pre, ERR_UNSUPPORTED, "\"default\" is not known (smollm,"},
        {control_byte, ERR_FORMAT, "no token for the byte 0x61"},
        {control_merge, ERR_FORMAT, "merge 3 would make text a control token: \"hello\""},
        {merge_of_nothing, ERR_FORMAT, "merge 0 has no space"},
        {merge_without_space, ERR_FORMAT, "merge 0 has no space: \"he\""},
        {merge_without_right, ERR_FORMAT, "names no token of the vocabulary: \"\""},
        {merge_without_left, ERR_FORMAT, "merge 0 has no space"},
        {merge_of_strangers, ERR_FORMAT, "names no token of the vocabulary: \"zz\""},
        {merge_to_a_stranger, ERR_FORMAT, "names no token of the vocabulary: \"hh\""},
        {duplicate, ERR_FORMAT, "tokens 258 and 262 are both \"llo\""},
        {broken_name, ERR_FORMAT, "token 262 is not UTF-8"},
        {bos_outside, ERR_FORMAT, "bos_token_id is not a token"},
        {eos_outside, ERR_FORMAT, "eos_token_id is not a token"},
        {eos_text, ERR_FORMAT, "eos_token_id is not a token"},
        {bos_wanted, ERR_FORMAT, "bos_token_id is missing, but the tokenizer adds it"},
        {bos_number, ERR_FORMAT, "add_bos_token is not a bool"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gguf_builder b;
        gguf_builder_init(&b);
        builder_vocabulary(&b, &standard);
        cases[i].change(&b);
        check_refused(&b, cases[i].code, cases[i].word);
        gguf_builder_release(&b);
    }
}

static void an_added_token_of_absurd_length_is_refused(void **state) {
    (void)state;
    static char name[300];
    memset(name, 'n', sizeof name - 1);
    vocabulary_parts p = standard;
    p.control = (const char *const[]){name, NULL};
    gguf_builder b;
    gguf_builder_init(&b);
    builder_vocabulary(&b, &p);
    check_refused(&b, ERR_FORMAT, "has 299 bytes; 256 are possible");
    gguf_builder_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lowest_rank_merges_first_and_of_equal_ones_the_leftmost),
        cmocka_unit_test(long_words_merge_as_short_ones_do),
        cmocka_unit_test(ignored_merges_take_a_whole_word_that_is_a_token),
        cmocka_unit_test(digits_stand_together_as_each_family_has_it),
        cmocka_unit_test(control_names_are_ids_in_trusted_text_only),
        cmocka_unit_test(segments_are_one_text_whose_trust_ends_at_the_border),
        cmocka_unit_test(the_longest_added_token_is_taken),
        cmocka_unit_test(control_marks_of_any_type_are_not_for_users),
        cmocka_unit_test(pieces_are_bytes_and_control_names_on_request),
        cmocka_unit_test(tokens_are_found_by_their_exact_name),
        cmocka_unit_test(bytes_a_vocabulary_lacks_are_dropped),
        cmocka_unit_test(a_very_long_token_is_made_by_its_merges),
        cmocka_unit_test(one_tokenizer_serves_many_threads),
        cmocka_unit_test(text_that_is_not_utf8_is_refused),
        cmocka_unit_test(a_stream_is_cut_before_an_unfinished_character),
        cmocka_unit_test(impossible_metadata_is_refused_by_name),
        cmocka_unit_test(an_added_token_of_absurd_length_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
