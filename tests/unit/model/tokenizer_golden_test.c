// The tokenizer against Hugging Face's: the same ids for every string of the goldens
// (tests/oracle/gen_tokenizer_goldens.py), and the same bytes back.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <openssl/evp.h>
#include <utf8proc.h>
#include "tests/support/hf_vocabulary.h"
#include "tests/support/vocabulary.h"

#define FIXTURES "tests/fixtures/tokenizer/"

static json_t *texts, *normalised; // of strings.json.gz

static bool same_ids(const token_list *l, const json_t *ids) {
    if (l->n != json_array_size(ids))
        return false;
    for (size_t i = 0; i < l->n; i++)
        if (l->ids[i] != json_integer_value(json_array_get(ids, i)))
            return false;
    return true;
}

static void report(size_t i, const json_t *text, const token_list *l, const json_t *ids) {
    char *quoted = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    char *wanted = json_dumps(ids, JSON_COMPACT);
    printf("string %zu %.300s\n  wanted %.300s\n  got   ", i, quoted, wanted);
    for (size_t k = 0; k < l->n && k < 60; k++)
        printf(" %d", l->ids[k]);
    printf("\n");
    free(quoted);
    free(wanted);
}

// Returns how many strings come out differently.
static size_t compare(const tokenizer *t, const json_t *golden, bool trusted) {
    size_t wrong = 0;
    for (size_t i = 0; i < json_array_size(texts); i++) {
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        const json_t *text = json_array_get(texts, i);
        const json_t *ids =
            trusted ? json_object_get(json_object_get(golden, "trusted"), key) : NULL;
        if (!ids) // the same as plain
            ids = json_array_get(json_object_get(golden, "plain"), i);
        token_list l = {0};
        err e = {0};
        if (tokenizer_encode(t, json_string_value(text), json_string_length(text), trusted, &l, &e))
            fail_msg("string %zu: %s", i, e.message);
        if (!same_ids(&l, ids) && wrong++ < 5)
            report(i, text, &l, ids);
        token_list_release(&l);
    }
    return wrong;
}

// Block i: every code point of 4,096 between others (blocks() in tests/oracle/tokenizer_corpus.py).
static void put_block(size_t i, buf *out) {
    for (int32_t c = (int32_t)i * 4096; c < ((int32_t)i + 1) * 4096; c++) {
        char name[5] = {0};
        if (c >= 0xd800 && c < 0xe000)
            continue;
        utf8proc_ssize_t n = utf8proc_encode_char(c, (utf8proc_uint8_t *)name);
        const struct {
            const char *p;
            size_t n;
        } pieces[] = {{"x", 1}, {name, (size_t)n}, {" ", 1}, {name, (size_t)n},
                      {"1", 1}, {name, (size_t)n}, {"a", 1}};
        for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++)
            buf_put(out, pieces[k].p, pieces[k].n);
    }
}

// Returns how many blocks of code points come out differently.
static size_t compare_blocks(const tokenizer *t, const json_t *digests) {
    size_t wrong = 0;
    assert_int_equal(json_array_size(digests), 272);
    for (size_t i = 0; i < 272; i++) {
        unsigned char sum[32];
        char hex[17];
        buf text = {0}, bytes = {0};
        token_list l = {0};
        err e = {0};
        put_block(i, &text);
        buf_put(&text, "", 0);
        assert_int_equal(tokenizer_encode(t, text.data, text.len, false, &l, &e), 0);
        for (size_t k = 0; k < l.n; k++)
            buf_put_u32(&bytes, (uint32_t)l.ids[k]);
        buf_put(&bytes, "", 0);
        assert_int_equal(EVP_Digest(bytes.data, bytes.len, sum, NULL, EVP_sha256(), NULL), 1);
        for (size_t k = 0; k < 8; k++)
            snprintf(hex + 2 * k, 3, "%02x", sum[k]);
        if (strcmp(hex, json_string_value(json_array_get(digests, i))) != 0) {
            printf("code points U+%04zX to U+%04zX\n", i * 4096, i * 4096 + 4095);
            wrong++;
        }
        token_list_release(&l);
        buf_release(&bytes);
        buf_release(&text);
    }
    return wrong;
}

static void check_tokenizer(const char *golden_name, const tokenizer *t) {
    char path[128];
    snprintf(path, sizeof path, FIXTURES "%s.json.gz", golden_name);
    json_t *golden = json_gz(path);
    assert_true(json_array_size(texts) >= 2000);
    assert_int_equal(json_array_size(json_object_get(golden, "plain")), json_array_size(texts));
    assert_true(json_object_size(json_object_get(golden, "trusted")) > 20);
    assert_int_equal(compare(t, golden, false), 0);
    assert_int_equal(compare(t, golden, true), 0);
    assert_int_equal(compare_blocks(t, json_object_get(golden, "blocks")), 0);
    json_decref(golden);
}

static void check_goldens(const char *golden_name, const char *vocabulary_name, const char *pre) {
    vocabulary v;
    if (!vocabulary_open(&v, vocabulary_name, pre))
        skip();
    check_tokenizer(golden_name, v.tokens);
    vocabulary_close(&v);
}

// The same vocabulary as tokenizer.json.
static void check_directory(const char *golden_name, const char *vocabulary_name, const char *pre) {
    char directory[] = "/tmp/tiergate-tokenizer-XXXXXX";
    vocabulary v;
    err e = {0};
    model *m = NULL;
    if (!vocabulary_open(&v, vocabulary_name, pre))
        skip();
    assert_non_null(mkdtemp(directory));
    hf_write_vocabulary(v.file, pre, directory);
    int rc = model_open(directory, NULL, &m, &e);
    hf_remove(directory);
    if (rc)
        fail_msg("%s", e.message);
    check_tokenizer(golden_name, model_tokenizer(m));
    model_close(m);
    vocabulary_close(&v);
}

static void tokenizer_json_gives_the_same_ids(void **state) {
    (void)state;
    check_directory("smollm2", "smollm2", "smollm");
    check_directory("qwen3", "qwen3", "qwen2");
    check_directory("gpt-2", "smollm2", "gpt-2");
    check_directory("llama-bpe", "qwen3", "llama-bpe");
}

static void smollm2_ids_equal_hugging_face(void **state) {
    (void)state;
    check_goldens("smollm2", "smollm2", NULL);
}

static void qwen3_ids_equal_hugging_face(void **state) {
    (void)state;
    check_goldens("qwen3", "qwen3", NULL);
}

static void gpt2_words_over_smollm2_equal_hugging_face(void **state) {
    (void)state;
    check_goldens("gpt-2", "smollm2", "gpt-2");
}

static void llama_words_over_qwen3_equal_hugging_face(void **state) {
    (void)state;
    check_goldens("llama-bpe", "qwen3", "llama-bpe");
}

static void starcoder_is_another_name_for_smollm(void **state) {
    (void)state;
    check_goldens("smollm2", "smollm2", "starcoder");
}

// ---- back again

static void decode(const tokenizer *t, const token_list *l, buf *out) {
    for (size_t i = 0; i < l->n; i++) {
        size_t n;
        const char *p = tokenizer_piece(t, l->ids[i], true, &n);
        buf_put(out, p, n);
    }
}

// What the vocabulary can say of a text: SmolLM2's lacks a few bytes.
static void known_bytes(const tokenizer *t, const char *p, size_t n, buf *out) {
    for (size_t i = 0; i < n; i++) {
        char name[4];
        byte_name((unsigned char)p[i], name);
        if (tokenizer_find(t, name) >= 0)
            buf_put(out, p + i, 1);
    }
}

static void check_round_trip(const char *vocabulary_name, bool nfc, bool trusted) {
    vocabulary v;
    if (!vocabulary_open(&v, vocabulary_name, NULL))
        skip();
    for (size_t i = 0; i < json_array_size(texts); i++) {
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        const json_t *text = nfc ? json_object_get(normalised, key) : NULL;
        if (!text)
            text = json_array_get(texts, i);
        token_list l = {0};
        buf back = {0}, wanted = {0};
        err e = {0};
        const json_t *given = json_array_get(texts, i);
        assert_int_equal(tokenizer_encode(v.tokens, json_string_value(given),
                                          json_string_length(given), trusted, &l, &e),
                         0);
        decode(v.tokens, &l, &back);
        known_bytes(v.tokens, json_string_value(text), json_string_length(text), &wanted);
        if (back.len != wanted.len || (back.len && memcmp(back.data, wanted.data, back.len)))
            fail_msg("string %zu comes back as \"%s\"", i, back.data);
        buf_release(&back);
        buf_release(&wanted);
        token_list_release(&l);
    }
    vocabulary_close(&v);
}

static void smollm2_tokens_say_the_text_again(void **state) {
    (void)state;
    check_round_trip("smollm2", false, false);
    check_round_trip("smollm2", false, true);
}

static void qwen3_tokens_say_the_normalised_text_again(void **state) {
    (void)state;
    check_round_trip("qwen3", true, false);
    check_round_trip("qwen3", true, true);
}

// ---- pathological texts

typedef struct pattern {
    const char *unit, *end;
} pattern;

// A megabyte that is one word, or nothing but the worst of a rule; quadratic time would be minutes.
static void a_megabyte_of_anything_takes_seconds_at_most(void **state) {
    (void)state;
    static const pattern patterns[] = {
        {"a", ""},           {" ", "x"},      {"\n", ""},   {"7", ""},     {"=", ""},
        {"ab", ""},          {"\t \r", ""},   {"中", ""},   {"<|", ""},    {"<|im_en", ""},
        {"'", ""},           {"qzjxkvw", ""}, {" \n", "x"}, {"a\r\n", ""}, {"\u0301\u0316", ""},
        {"\u1100\u1161", ""}};
    const char *const names[] = {"smollm2", "qwen3"};
    for (size_t k = 0; k < 2; k++) {
        vocabulary v;
        if (!vocabulary_open(&v, names[k], NULL))
            skip();
        for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
            buf text = {0};
            while (text.len < 1000000)
                buf_puts(&text, patterns[i].unit);
            buf_puts(&text, patterns[i].end);
            token_list l = {0};
            err e = {0};
            struct timespec from, to;
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
            assert_int_equal(tokenizer_encode(v.tokens, text.data, text.len, true, &l, &e), 0);
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
            assert_true(to.tv_sec - from.tv_sec < 20); // with sanitizers too
            token_list_release(&l);
            buf_release(&text);
        }
        vocabulary_close(&v);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_ids_equal_hugging_face),
        cmocka_unit_test(qwen3_ids_equal_hugging_face),
        cmocka_unit_test(gpt2_words_over_smollm2_equal_hugging_face),
        cmocka_unit_test(llama_words_over_qwen3_equal_hugging_face),
        cmocka_unit_test(tokenizer_json_gives_the_same_ids),
        cmocka_unit_test(starcoder_is_another_name_for_smollm),
        cmocka_unit_test(smollm2_tokens_say_the_text_again),
        cmocka_unit_test(qwen3_tokens_say_the_normalised_text_again),
        cmocka_unit_test(a_megabyte_of_anything_takes_seconds_at_most),
    };
    json_t *strings = json_gz(FIXTURES "strings.json.gz");
    texts = json_object_get(strings, "strings");
    normalised = json_object_get(strings, "nfc");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(strings);
    return failed;
}
