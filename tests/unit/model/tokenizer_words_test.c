// Words of every length against merging as BPE is defined: look through the whole word for the
// lowest rank, merge, begin again. Vocabularies and words are random, and ranks need not have come
// from training: what a merge makes may go before what it was made of.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "tests/support/vocabulary.h"

#define ROUNDS 400
#define MAX_WORD 700
#define MAX_MERGES 80
#define MAX_NAME 10

typedef struct rule {
    int left, right, made; // into names
} rule;

typedef struct language {
    int n_letters, n_names, n_rules;
    char names[4 + MAX_MERGES][2 * MAX_NAME + 1];
    rule rules[MAX_MERGES]; // by rank
} language;

static uint32_t draw(uint64_t *seed, uint32_t n) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % n;
}

static int find_name(const language *l, const char *name) {
    for (int i = 0; i < l->n_names; i++)
        if (!strcmp(l->names[i], name))
            return i;
    return -1;
}

static bool has_rule(const language *l, int left, int right) {
    for (int i = 0; i < l->n_rules; i++)
        if (l->rules[i].left == left && l->rules[i].right == right)
            return true;
    return false;
}

static void add_rule(language *l, int left, int right) {
    char name[2 * MAX_NAME + 1];
    snprintf(name, sizeof name, "%s%s", l->names[left], l->names[right]);
    if (strlen(name) > MAX_NAME || has_rule(l, left, right))
        return;
    int made = find_name(l, name);
    if (made < 0)
        strcpy(l->names[made = l->n_names++], name);
    l->rules[l->n_rules++] = (rule){left, right, made};
}

static void make_language(language *l, uint64_t *seed) {
    *l = (language){.n_letters = 1 + (int)draw(seed, 4)};
    for (int i = 0; i < l->n_letters; i++)
        l->names[l->n_names++][0] = (char)('a' + i);
    for (uint32_t wanted = 1 + draw(seed, MAX_MERGES); wanted; wanted--) {
        int left = (int)draw(seed, (uint32_t)l->n_names);
        add_rule(l, left, (int)draw(seed, (uint32_t)l->n_names));
    }
    for (int i = l->n_rules - 1; i > 0 && draw(seed, 3); i--) { // ranks out of order
        int other = (int)draw(seed, (uint32_t)i + 1);
        rule r = l->rules[i];
        l->rules[i] = l->rules[other];
        l->rules[other] = r;
    }
}

static void open_language(vocabulary *v, const language *l) {
    char merges[MAX_MERGES][2 * MAX_NAME + 2];
    const char *made[MAX_MERGES + 1] = {NULL}, *lines[MAX_MERGES + 1] = {NULL};
    for (int i = l->n_letters; i < l->n_names; i++)
        made[i - l->n_letters] = l->names[i];
    for (int i = 0; i < l->n_rules; i++) {
        snprintf(merges[i], sizeof merges[i], "%.10s %.10s", l->names[l->rules[i].left],
                 l->names[l->rules[i].right]);
        lines[i] = merges[i];
    }
    const vocabulary_parts parts = {"gpt-2", made, NULL, NULL, lines};
    gguf_builder b;
    err e = {0};
    gguf_builder_init(&b);
    builder_vocabulary(&b, &parts);
    if (vocabulary_build(v, &b, &e))
        fail_msg("%s", e.message);
    gguf_builder_release(&b);
}

// Letters, or two names over and over.
static size_t make_word(const language *l, uint64_t *seed, char *out) {
    size_t n = 41 + draw(seed, MAX_WORD - 41);
    const char *unit = l->names[draw(seed, (uint32_t)l->n_names)];
    const char *other = l->names[draw(seed, (uint32_t)l->n_names)];
    bool random = draw(seed, 2);
    for (size_t i = 0; i < n; i++) {
        size_t at = i % (strlen(unit) + strlen(other));
        out[i] = random              ? (char)('a' + draw(seed, (uint32_t)l->n_letters))
                 : at < strlen(unit) ? unit[at]
                                     : other[at - strlen(unit)];
    }
    out[n] = '\0';
    return n;
}

static size_t merge_by_definition(const language *l, const char *word, int *symbols) {
    size_t n = strlen(word);
    for (size_t i = 0; i < n; i++)
        symbols[i] = word[i] - 'a';
    for (int rank = 0; rank < l->n_rules; rank++) {
        const rule *r = &l->rules[rank];
        size_t i = 0;
        while (i + 1 < n && (symbols[i] != r->left || symbols[i + 1] != r->right))
            i++;
        if (i + 1 >= n)
            continue;
        symbols[i] = r->made;
        memmove(symbols + i + 1, symbols + i + 2, (n - i - 2) * sizeof *symbols);
        n--;
        rank = -1; // the lowest rank may be another one now
    }
    return n;
}

static void check_word(const tokenizer *t, const language *l, const char *word, size_t n_word) {
    static int symbols[MAX_WORD];
    token_list made = {0};
    err e = {0};
    size_t n = merge_by_definition(l, word, symbols);
    assert_int_equal(tokenizer_encode(t, word, n_word, false, &made, &e), 0);
    assert_int_equal(made.n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(made.ids[i], tokenizer_find(t, l->names[symbols[i]]));
    token_list_release(&made);
}

static void words_merge_as_bpe_is_defined(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < ROUNDS; round++) {
        static language l;
        char word[MAX_WORD + 1];
        vocabulary v;
        make_language(&l, &seed);
        open_language(&v, &l);
        for (int i = 0; i < 5; i++) {
            size_t n = make_word(&l, &seed, word);
            check_word(v.tokens, &l, word, n);
            word[n = 1 + n % 40] = '\0'; // short ones go another way
            check_word(v.tokens, &l, word, n);
        }
        vocabulary_close(&v);
    }
}

// Quadratic time would take minutes here.
static void a_huge_word_is_merged_from_end_to_end(void **state) {
    (void)state;
    static language l;
    size_t n = 1u << 20;
    char *word = test_malloc(n + 1);
    vocabulary v;
    token_list made = {0};
    err e = {0};
    l = (language){.n_letters = 2, .n_names = 2, .names = {"a", "b"}};
    add_rule(&l, 0, 1); // ab
    add_rule(&l, 2, 2); // abab
    add_rule(&l, 3, 3); // abababab
    open_language(&v, &l);
    for (size_t i = 0; i < n; i++)
        word[i] = "ab"[i & 1];
    assert_int_equal(tokenizer_encode(v.tokens, word, n, false, &made, &e), 0);
    assert_int_equal(made.n, n / 8);
    for (size_t i = 0; i < made.n; i++)
        assert_int_equal(made.ids[i], tokenizer_find(v.tokens, "abababab"));
    token_list_release(&made);
    vocabulary_close(&v);
    test_free(word);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_merge_as_bpe_is_defined),
        cmocka_unit_test(a_huge_word_is_merged_from_end_to_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
