// Guessed tokens in an engine's step, on every backend: whatever is guessed, the tokens, what they
// were worth and what the cache holds afterwards are those of a run without a guess.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "tests/support/golden.h"
#include "tests/support/tiny_engine.h"

enum { PROMPT = 41, MADE = 48, SLACK = 8, PAGE = 16 };

static const uint8_t salt[ENGINE_SALT_BYTES] = {7};

static sampling_params drawn(void) {
    sampling_params p = tiny_lively();
    p.presence_penalty = p.frequency_penalty = 0;
    p.repetition_penalty = 1;
    p.n_top_logprobs = 3;
    return p;
}

static void plain_run(engine *g, const sampling_params *p, const int32_t *prompt,
                      engine_sampled *out) {
    engine_seq *s = tiny_seq(g, p, prompt, PROMPT, 0, NULL);
    engine_row row = {.seq = s, .tokens = prompt, .n = PROMPT, .sample = true};
    for (int i = 0; i < MADE + SLACK; i++) {
        out[i] = tiny_step(g, &row, 1)->sampled[0];
        row = (engine_row){.seq = s, .tokens = &out[i].id, .n = 1, .sample = true};
    }
    engine_seq_free(g, s);
}

// How the guesses of a run are spoilt: wrong(i) of the guess for position i.
typedef bool (*spoiler)(int i);
static bool never(int i) { return (void)i, false; }
static bool always(int i) { return (void)i, true; }
static bool now_and_then(int i) { return i % 5 == 3 || i % 7 == 1; }

// Decodes with n_draft guesses a step. Returns how many were right.
static int guessed_run(engine *g, engine_seq *s, const int32_t *prompt, int n_draft, spoiler wrong,
                       const engine_sampled *truth, engine_sampled *out) {
    int32_t tokens[PROMPT + SLACK];
    int n = 0, right = 0;
    int64_t free = engine_kv_tokens_free(g);
    memcpy(tokens, prompt, PROMPT * sizeof *tokens);
    engine_row row = {.seq = s, .n = PROMPT}; // guesses stand behind the prompt's last chunk too
    while (n < MADE) {
        row.tokens = tokens;
        row.sample = true;
        row.n_draft = n_draft;
        for (int k = 0; k < n_draft; k++)
            tokens[row.n + k] = (truth[n + k].id + wrong(n + k)) % TINY_VOCAB;
        row.n += n_draft;
        const engine_result *r = tiny_step(g, &row, 1);
        for (int k = 0; k < r->n_right[0] && n < MADE; k++)
            out[n++] = r->drafts[0][k];
        if (n < MADE)
            out[n++] = r->sampled[0];
        right += r->n_right[0];
        assert_int_equal(free - engine_kv_tokens_free(g), // no page is held for a wrong guess
                         (engine_seq_length(s) + PAGE - 1) / PAGE * PAGE);
        tokens[0] = r->sampled[0].id;
        row.n = 1;
    }
    return right;
}

static void guesses_right_or_wrong_change_no_bit(void **state) {
    static const char *const models[] = {"llama", "q4_1", "qwen3"};
    static const spoiler spoilers[] = {never, always, now_and_then};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t w = 0; w < 3; w++)
            for (int n_draft = 1; n_draft <= SLACK; n_draft += 3) {
                tiny_engine f = {0};
                int32_t ids[PROMPT];
                sampling_params p = drawn();
                engine_sampled truth[MADE + SLACK], out[MADE];
                tiny_engine_open(&f, models[m], tiny_config(*state, 2));
                tiny_ids(ids, PROMPT, 5);
                plain_run(f.g, &p, ids, truth);
                engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt);
                int right = guessed_run(f.g, s, ids, n_draft, spoilers[w], truth, out);
                tiny_assert_same(truth, out, MADE);
                if (spoilers[w] == always)
                    assert_int_equal(right, 0);
                else
                    assert_true(right > 0);
                engine_seq_free(f.g, s);
                tiny_engine_close(&f);
            }
}

// What a guess wrote must never be found by another: the pages made known are the kept tokens'.
static void the_prefix_cache_knows_kept_tokens_only(void **state) {
    tiny_engine f = {0};
    int32_t ids[PROMPT + MADE];
    sampling_params p = drawn();
    engine_sampled truth[MADE + SLACK], out[MADE], again[MADE];
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, PROMPT, 9);
    plain_run(f.g, &p, ids, truth);
    for (int i = 0; i < MADE; i++)
        ids[PROMPT + i] = truth[i].id;
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt);
    guessed_run(f.g, s, ids, 4, now_and_then, truth, out);
    engine_seq_free(f.g, s);
    s = tiny_seq(f.g, &p, ids, PROMPT + MADE, MADE, salt);
    assert_int_equal(engine_seq_length(s), (PROMPT + MADE - 1) / PAGE * PAGE);
    engine_row row = {.seq = s,
                      .tokens = ids + engine_seq_length(s),
                      .n = PROMPT + MADE - engine_seq_length(s),
                      .sample = true};
    for (int i = 0; i < SLACK; i++) {
        again[i] = tiny_step(f.g, &row, 1)->sampled[0];
        row = (engine_row){.seq = s, .tokens = &again[i].id, .n = 1, .sample = true};
    }
    tiny_assert_same(truth + MADE, again, SLACK);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

static void expect_refused(engine *g, engine_row row) {
    err e = {0};
    const engine_result *r;
    int length = engine_seq_length(row.seq);
    assert_int_equal(engine_step(g, &row, 1, &r, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(engine_seq_length(row.seq), length);
}

static void guesses_that_cannot_be_judged_are_refused(void **state) {
    tiny_engine f = {0};
    int32_t ids[PROMPT];
    sampling_params p = drawn(), penal = tiny_lively();
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, PROMPT, 2);
    engine_seq *s = tiny_seq(f.g, &p, ids, 4, 0, NULL), *t = tiny_seq(f.g, &penal, ids, 4, 0, NULL);
    assert_true(engine_seq_may_draft(s));
    assert_false(engine_seq_may_draft(t));
    engine_row row = {.seq = s, .tokens = ids, .n = 4, .sample = true, .n_draft = 4};
    expect_refused(f.g, row); // nothing to sample after
    row.n_draft = -1;
    expect_refused(f.g, row);
    row.n_draft = 2;
    row.sample = false;
    expect_refused(f.g, row);
    row.sample = row.prompt_logprobs = true;
    expect_refused(f.g, row);
    row.prompt_logprobs = false;
    row.seq = t;
    expect_refused(f.g, row);
    engine_seq_free(f.g, s);
    engine_seq_free(f.g, t);
    tiny_engine_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ALL(guesses_right_or_wrong_change_no_bit),
        ALL(the_prefix_cache_knows_kept_tokens_only),
        ON("ref", guesses_that_cannot_be_judged_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
