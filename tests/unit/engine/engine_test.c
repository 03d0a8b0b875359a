// What an engine promises its caller, on every backend: no result depends on company, chunks,
// threads, forks or restarts; a step that fails changes nothing; bad input is named. Runs tiny
// random models.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/engine.h"
#include "tests/support/golden.h"
#include "tests/support/tiny_engine.h"

enum { PROMPT = 70, PAGE = 16 };

// ---- results depend on the sequence alone

static void chunks_do_not_change_a_result(void **state) {
    static const int chunks[] = {1, 7, 16, 17, 64};
    tiny_engine f = {0};
    golden k = {.n = PROMPT};
    engine_sampled whole[PROMPT], cut[PROMPT];
    tiny_engine_open(&f, "q4_1", tiny_config(*state, 2));
    k.ids = calloc(PROMPT, sizeof *k.ids);
    tiny_ids(k.ids, PROMPT, 1);
    golden_run(f.g, &k, PROMPT, PROMPT, whole, false);
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        golden_run(f.g, &k, PROMPT, chunks[i], cut, false);
        tiny_assert_same(whole, cut, PROMPT - 1);
    }
    free(k.ids);
    tiny_engine_close(&f);
}

static void company_does_not_change_a_result(void **state) {
    tiny_engine f = {0};
    int32_t ids[3][PROMPT];
    engine_sampled alone[PROMPT + 1];
    sampling_params p = greedy_params(5), hot = greedy_params(2);
    hot.temperature = 1.5f;
    tiny_engine_open(&f, "mixed", tiny_config(*state, 2));
    for (int i = 0; i < 3; i++)
        tiny_ids(ids[i], PROMPT, (uint32_t)i);
    engine_seq *s = tiny_seq(f.g, &p, ids[0], PROMPT, 0, NULL);
    engine_row row = {
        .seq = s, .tokens = ids[0], .n = PROMPT, .sample = true, .prompt_logprobs = true};
    const engine_result *r = tiny_step(f.g, &row, 1);
    memcpy(alone, r->prompt[0], (PROMPT - 1) * sizeof *alone);
    alone[PROMPT - 1] = r->sampled[0];
    row = (engine_row){.seq = s, .tokens = &alone[PROMPT - 1].id, .n = 1, .sample = true};
    alone[PROMPT] = tiny_step(f.g, &row, 1)->sampled[0];
    engine_seq_free(f.g, s);

    // Now as the middle one of three: a chunk before it, a single token and a chunk behind it.
    engine_seq *before = tiny_seq(f.g, &hot, ids[1], PROMPT, 0, NULL);
    s = tiny_seq(f.g, &p, ids[0], PROMPT, 0, NULL);
    engine_seq *after = tiny_seq(f.g, &hot, ids[2], PROMPT, 0, NULL);
    engine_row three[] = {
        {.seq = before, .tokens = ids[1], .n = 33, .prompt_logprobs = true},
        {.seq = s, .tokens = ids[0], .n = PROMPT, .sample = true, .prompt_logprobs = true},
        {.seq = after, .tokens = ids[2], .n = 1, .sample = true},
    };
    r = tiny_step(f.g, three, 3);
    tiny_assert_same(r->prompt[1], alone, PROMPT - 1);
    tiny_assert_same(&r->sampled[1], &alone[PROMPT - 1], 1);
    engine_row again[] = {
        {.seq = after, .tokens = ids[2] + 1, .n = PROMPT - 1, .sample = true},
        {.seq = s, .tokens = &alone[PROMPT - 1].id, .n = 1, .sample = true},
    };
    tiny_assert_same(&tiny_step(f.g, again, 2)->sampled[1], &alone[PROMPT], 1);
    engine_seq_free(f.g, before);
    engine_seq_free(f.g, s);
    engine_seq_free(f.g, after);
    tiny_engine_close(&f);
}

static void a_continuation_equals_the_undisturbed_run(void **state) {
    enum { N = 24, CUT = 11 };
    tiny_engine f = {0};
    int32_t ids[PROMPT + N], whole[N], rest[N];
    sampling_params p = tiny_lively();
    tiny_engine_open(&f, "q8_0", tiny_config(*state, 2));
    tiny_ids(ids, PROMPT, 5);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL);
    tiny_generate(f.g, s, ids, PROMPT, whole, N);
    engine_seq_free(f.g, s);
    memcpy(ids + PROMPT, whole, CUT * sizeof *ids);
    s = tiny_seq(f.g, &p, ids, PROMPT + CUT, CUT, NULL);
    tiny_generate(f.g, s, ids, PROMPT + CUT, rest, N - CUT);
    assert_memory_equal(rest, whole + CUT, (N - CUT) * sizeof *rest);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

static void threads_do_not_change_a_result(void **state) {
    enum { N = 16 };
    int32_t ids[PROMPT], tokens[2][N];
    sampling_params p = tiny_lively();
    tiny_ids(ids, PROMPT, 9);
    for (int i = 0; i < 2; i++) {
        tiny_engine f = {0};
        tiny_engine_open(&f, "q5_k", tiny_config(*state, i == 0 ? 1 : 3));
        engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL);
        tiny_generate(f.g, s, ids, PROMPT, tokens[i], N);
        engine_seq_free(f.g, s);
        tiny_engine_close(&f);
    }
    assert_memory_equal(tokens[0], tokens[1], sizeof tokens[0]);
}

static void a_fork_shares_full_pages_and_goes_its_own_way(void **state) {
    enum { N = 20 };
    tiny_engine f = {0};
    err e = {0};
    int32_t ids[PROMPT], forked[2][N], fresh[N];
    sampling_params p = tiny_lively();
    engine_seq *s, *t;
    tiny_engine_open(&f, "llama", tiny_config(*state, 2));
    tiny_ids(ids, PROMPT, 3);
    s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL);
    engine_row row = {.seq = s, .tokens = ids, .n = PROMPT - 1};
    tiny_step(f.g, &row, 1);
    int64_t free_before = engine_kv_tokens_free(f.g);
    assert_int_equal(engine_seq_fork(f.g, s, 1, &t, &e), 0);
    assert_int_equal(free_before - engine_kv_tokens_free(f.g), PAGE); // 69 = 4 full pages and one
    assert_int_equal(engine_seq_length(t), PROMPT - 1);
    tiny_generate(f.g, s, ids + PROMPT - 1, 1, forked[0], N);
    tiny_generate(f.g, t, ids + PROMPT - 1, 1, forked[1], N);
    assert_memory_not_equal(forked[0], forked[1], sizeof forked[0]);
    engine_seq_free(f.g, s);
    engine_seq_free(f.g, t);
    assert_int_equal(engine_seq_new(f.g, &p, 1, ids, PROMPT, 0, NULL, &s, &e), 0);
    tiny_generate(f.g, s, ids, PROMPT, fresh, N);
    assert_memory_equal(fresh, forked[1], sizeof fresh);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

static void a_chunk_is_told_what_its_first_token_was_worth(void **state) {
    tiny_engine f = {0};
    int32_t ids[PROMPT];
    sampling_params p = greedy_params(5);
    tiny_engine_open(&f, "qwen3", tiny_config(*state, 2));
    tiny_ids(ids, PROMPT, 3);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL);
    engine_row row = {.seq = s, .tokens = ids, .n = 10, .prompt_logprobs = true};
    assert_int_equal(tiny_step(f.g, &row, 1)->first[0].id, -1); // the first chunk: nothing precedes
    row.tokens += 10;
    const engine_result *r = tiny_step(f.g, &row, 1);
    assert_int_equal(r->first[0].id, ids[10]);
    assert_true(r->first[0].logprob < 0);
    assert_int_equal(r->first[0].n_top, 5);
    row.tokens += 10;
    row.prompt_logprobs = false;
    assert_null(tiny_step(f.g, &row, 1)->prompt[0]);
    row.tokens += 10;
    row.prompt_logprobs = true;
    assert_int_equal(tiny_step(f.g, &row, 1)->first[0].id, -1); // the chunk before did not ask
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

// ---- failures

static void without_free_pages_a_step_changes_nothing(void **state) {
    tiny_engine f = {0};
    err e = {0};
    int32_t ids[TINY_CONTEXT];
    const engine_result *r;
    sampling_params p = greedy_params(-1);
    engine_config c = tiny_config(*state, 1);
    c.max_context = 64;
    c.kv_bytes = (size_t)5 * PAGE * 64 * 2 * 4 * TINY_LAYERS; // five pages of one f32 KV head
    tiny_engine_open(&f, "llama", c);
    tiny_ids(ids, TINY_CONTEXT, 2);
    int64_t total = engine_kv_tokens_free(f.g);
    engine_seq *a = tiny_seq(f.g, &p, ids, 64, 0, NULL), *b = tiny_seq(f.g, &p, ids, 64, 0, NULL);
    engine_seq *last = tiny_seq(f.g, &p, ids, 64, 0, NULL);
    for (int64_t left = total; left >= 64; left -= 64) { // fill up to less than one sequence
        engine_seq *s = left >= 128 ? last : a;
        engine_row row = {.seq = s, .tokens = ids, .n = 64};
        tiny_step(f.g, &row, 1);
    }
    int64_t free_before = engine_kv_tokens_free(f.g);
    engine_seq *fits = tiny_seq(f.g, &p, ids, 64, 0, NULL);
    engine_row rows[] = {{.seq = fits, .tokens = ids, .n = 1},
                         {.seq = b, .tokens = ids, .n = 64, .sample = true}};
    assert_int_equal(engine_step(f.g, rows, 2, &r, &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_int_equal(engine_kv_tokens_free(f.g), free_before);
    assert_int_equal(engine_seq_length(b), 0);
    assert_int_equal(engine_seq_length(fits), 0);
    engine_seq_free(f.g, a);
    tiny_step(f.g, &rows[1], 1);
    assert_int_equal(engine_seq_length(b), 64);
    engine_seq_free(f.g, fits);
    engine_seq_free(f.g, b);
    engine_seq_free(f.g, last);
    assert_int_equal(engine_kv_tokens_free(f.g), total);
    tiny_engine_close(&f);
}

// The embedding of token 7 becomes NaN, so whoever reads it can predict nothing.
static void poison_token_7(tiny_engine *f, engine_config c) {
    err e = {0};
    buf bytes = {0};
    gguf *g;
    char path[] = "/tmp/tiergate-poison-XXXXXX";
    const tiny_model *t = tiny_model_find("llama");
    tiny_model_bytes(t, &bytes);
    assert_int_equal(gguf_open_memory(bytes.data, bytes.len, &g, &e), 0);
    float *row = (float *)((char *)(uintptr_t)gguf_find(g, "token_embd.weight")->data +
                           (size_t)7 * (size_t)t->dim * sizeof(float));
    row[0] = NAN;
    gguf_close(g);
    int fd = mkstemp(path);
    assert_int_equal(write(fd, bytes.data, bytes.len), bytes.len);
    close(fd);
    int rc = model_open(path, NULL, &f->m, &e);
    unlink(path);
    assert_int_equal(rc, 0);
    assert_int_equal(engine_open(f->m, &c, &f->g, &e), 0);
    buf_release(&bytes);
}

// Token 2 is wanted unless what the failed steps counted stays counted: then 9 is.
static sampling_params counting_params(void) {
    sampling_params p = greedy_params(-1);
    p.frequency_penalty = 1;
    p.n_bias = 2;
    p.bias[0] = (logit_bias){.id = 2, .bias = 60};
    p.bias[1] = (logit_bias){.id = 9, .bias = 50};
    return p;
}

static void logits_that_are_not_finite_name_the_row_and_change_nothing(void **state) {
    tiny_engine f = {0};
    err e = {0};
    const engine_result *r;
    const int32_t good[] = {1, 2, 3}, bad[] = {1, 7};
    sampling_params p = counting_params();
    tiny_need(*state);
    poison_token_7(&f, tiny_config(*state, 2));
    engine_seq *a = tiny_seq(f.g, &p, good, 1, 0, NULL), *b = tiny_seq(f.g, &p, bad, 1, 0, NULL);
    int64_t free_before = engine_kv_tokens_free(f.g);
    engine_row rows[] = {{.seq = a, .tokens = good, .n = 3, .sample = true},
                         {.seq = b, .tokens = bad, .n = 2, .sample = true}};
    for (int i = 0; i < 30; i++) {
        assert_int_equal(engine_step(f.g, rows, 2, &r, &e), -1);
        assert_int_equal(e.code, ERR_INTERNAL);
        assert_string_equal(e.param, "rows[1]");
        assert_int_equal(engine_kv_tokens_free(f.g), free_before);
        assert_int_equal(engine_seq_length(a), 0);
    }
    assert_int_equal(tiny_step(f.g, rows, 1)->sampled[0].id, 2);
    assert_int_equal(engine_seq_length(a), 3);
    engine_seq_free(f.g, a);
    engine_seq_free(f.g, b);
    tiny_engine_close(&f);
}

static void expect_refused(engine *g, const engine_row *rows, int n, err_code code) {
    err e = {0};
    const engine_result *r;
    assert_int_equal(engine_step(g, rows, n, &r, &e), -1);
    assert_int_equal(e.code, code);
    assert_true(strlen(e.message) > 0);
}

static void bad_rows_are_refused(void **state) {
    tiny_engine f = {0};
    int32_t ids[TINY_CONTEXT * 3];
    const int32_t outside[] = {1, TINY_VOCAB}, negative[] = {-1};
    sampling_params p = greedy_params(-1);
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, TINY_CONTEXT * 3, 2);
    engine_seq *s[3];
    for (int i = 0; i < 3; i++)
        s[i] = tiny_seq(f.g, &p, ids, 1, 0, NULL);
    engine_row twice[] = {{.seq = s[0], .tokens = ids, .n = 1},
                          {.seq = s[0], .tokens = ids, .n = 1}};
    engine_row three[] = {{.seq = s[0], .tokens = ids, .n = 100},
                          {.seq = s[1], .tokens = ids, .n = 100},
                          {.seq = s[2], .tokens = ids, .n = 57}};
    expect_refused(f.g, twice, 2, ERR_INVALID);
    expect_refused(f.g, three, 3, ERR_INVALID); // 257 of 256
    expect_refused(f.g, &(engine_row){.seq = s[0], .tokens = ids, .n = 0}, 1, ERR_INVALID);
    expect_refused(f.g, &(engine_row){.seq = s[0], .tokens = outside, .n = 2}, 1, ERR_INVALID);
    expect_refused(f.g, &(engine_row){.seq = s[0], .tokens = negative, .n = 1}, 1, ERR_INVALID);
    expect_refused(f.g, &(engine_row){.seq = s[0], .tokens = ids, .n = TINY_CONTEXT + 1}, 1,
                   ERR_CONTEXT_LENGTH);
    three[2].n = 56;
    tiny_step(f.g, three, 3);
    for (int i = 0; i < 3; i++)
        engine_seq_free(f.g, s[i]);
    tiny_engine_close(&f);
}

static void bad_sequences_are_refused(void **state) {
    tiny_engine f = {0};
    err e = {0};
    int32_t ids[TINY_CONTEXT + 1] = {0};
    const int32_t outside[] = {TINY_VOCAB};
    sampling_params p = greedy_params(-1), bad = p;
    engine_seq *s[5];
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    bad.top_p = 0;
    assert_int_equal(engine_seq_new(f.g, &bad, 0, ids, 1, 0, NULL, &s[0], &e), -1);
    assert_string_equal(e.param, "top_p");
    assert_int_equal(engine_seq_new(f.g, &p, 0, outside, 1, 0, NULL, &s[0], &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_int_equal(engine_seq_new(f.g, &p, 0, ids, 1, 2, NULL, &s[0], &e), -1);
    assert_int_equal(engine_seq_new(f.g, &p, 0, ids, TINY_CONTEXT + 1, 0, NULL, &s[0], &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    for (int i = 0; i < 4; i++)
        s[i] = tiny_seq(f.g, &p, ids, 1, 0, NULL);
    assert_int_equal(engine_seq_new(f.g, &p, 0, ids, 1, 0, NULL, &s[4], &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_int_equal(engine_seq_fork(f.g, s[0], 1, &s[4], &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    for (int i = 0; i < 4; i++)
        engine_seq_free(f.g, s[i]);
    tiny_engine_close(&f);
}

static void expect_closed(const model *m, engine_config c, const char *param) {
    err e = {0};
    engine *g = NULL;
    assert_int_equal(engine_open(m, &c, &g, &e), -1);
    assert_null(g);
    assert_string_equal(e.param, param);
}

static void a_configuration_that_cannot_work_names_its_field(void **state) {
    model *m = tiny_open_model("llama");
    engine_config c = tiny_config(*state, 1), bad = c;
    tiny_need(*state);
    bad.max_seqs = 0;
    expect_closed(m, bad, "max_seqs");
    bad = c;
    bad.max_rows = 0;
    expect_closed(m, bad, "max_rows");
    bad = c;
    bad.max_context = TINY_CONTEXT + 1;
    expect_closed(m, bad, "max_context");
    bad = c;
    bad.kv_bytes = 1000;
    expect_closed(m, bad, "kv_bytes");
    bad = c;
    bad.kv_type = "q4";
    expect_closed(m, bad, "kv_type");
    bad = c;
    bad.backend = "abacus";
    expect_closed(m, bad, "backend");
    model_close(m);
}

// kernels/ops.h: attention serves at most 32 query heads per KV head.
static void more_query_heads_on_a_kv_head_than_attention_serves_are_refused(void **state) {
    static const tiny_model wide = {.arch = ARCH_LLAMA,
                                    .dim = 64,
                                    .n_kv_heads = 1,
                                    .head_dim = 8,
                                    .intermediate = 96,
                                    .type = WT_F32,
                                    .down = WT_F32,
                                    .embed = WT_F32};
    tiny_need(*state);
    for (int n = 32; n <= 33; n++) {
        tiny_model t = wide;
        engine_config c = tiny_config(*state, 1);
        engine *g = NULL;
        err e = {0};
        t.name = "wide";
        t.n_heads = n;
        model *m = tiny_open_made(&t);
        assert_int_equal(engine_open(m, &c, &g, &e), n == 32 ? 0 : -1);
        if (n == 33) {
            assert_int_equal(e.code, ERR_UNSUPPORTED);
            assert_non_null(strstr(e.message, "33 query heads on 1 KV heads"));
        }
        engine_close(g);
        model_close(m);
    }
}

static void note_progress(void *ctx, double fraction) {
    double *last = ctx;
    assert_true(fraction >= *last && fraction <= 1);
    *last = fraction;
}

static void loading_reports_progress_up_to_the_end(void **state) {
    tiny_engine f = {0};
    double last = 0;
    engine_config c = tiny_config(*state, 1);
    c.progress = note_progress;
    c.progress_ctx = &last;
    tiny_engine_open(&f, "mixed", c);
    assert_true(last > 0.999);
    assert_true(engine_weight_bytes(f.g) > 100000);
    assert_string_equal(engine_backend(f.g), *state);
    assert_int_equal(engine_max_context(f.g), TINY_CONTEXT);
    tiny_engine_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ALL(chunks_do_not_change_a_result),
        ALL(company_does_not_change_a_result),
        ALL(a_continuation_equals_the_undisturbed_run),
        ALL(threads_do_not_change_a_result),
        ALL(a_fork_shares_full_pages_and_goes_its_own_way),
        ALL(a_chunk_is_told_what_its_first_token_was_worth),
        ALL(without_free_pages_a_step_changes_nothing),
        ALL(logits_that_are_not_finite_name_the_row_and_change_nothing),
        ON("ref", bad_rows_are_refused),
        ON("ref", bad_sequences_are_refused),
        ON("ref", a_configuration_that_cannot_work_names_its_field),
        ALL(more_query_heads_on_a_kv_head_than_attention_serves_are_refused),
        ALL(loading_reports_progress_up_to_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
