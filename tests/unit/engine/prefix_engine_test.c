// The prefix cache as an engine's caller sees it, on every backend: what is found is the same bits
// as what would have been computed, whoever stored it and however its prompt was cut; salts never
// meet; forks, failed steps, a full cache and restarts change no token; a step allocates nothing.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/support/golden.h"
#include "tests/support/tiny_engine.h"

enum { PROMPT = 70, MADE = 24, PAGE = 16, FULL = 64 };

static const char *const kv_types[] = {"f32", "q8", "f16", "bf16"};
static const uint8_t salt_a[ENGINE_SALT_BYTES] = {1}, salt_b[ENGINE_SALT_BYTES] = {[31] = 2};

// Feeds what is left of the prompt in chunks, then decodes: MADE tokens with what they were worth.
static void run(engine *g, engine_seq *s, const int32_t *prompt, int chunk, engine_sampled *out) {
    while (engine_seq_length(s) < PROMPT - 1) {
        int at = engine_seq_length(s), left = PROMPT - 1 - at;
        engine_row row = {.seq = s, .tokens = prompt + at, .n = left < chunk ? left : chunk};
        tiny_step(g, &row, 1);
    }
    const int32_t *next = prompt + PROMPT - 1;
    for (int i = 0; i < MADE; i++) {
        engine_row row = {.seq = s, .tokens = next, .n = 1, .sample = true};
        out[i] = tiny_step(g, &row, 1)->sampled[0];
        next = &out[i].id;
    }
}

static void run_new(engine *g, const uint8_t *salt, const int32_t *prompt, int chunk,
                    engine_sampled *out) {
    sampling_params p = tiny_lively();
    p.n_top_logprobs = 5;
    engine_seq *s = tiny_seq(g, &p, prompt, PROMPT, 0, salt);
    run(g, s, prompt, chunk, out);
    engine_seq_free(g, s);
}

static void what_is_found_gives_the_bits_that_computing_gives(void **state) {
    static const char *const models[] = {"q4_1", "q5_k", "qwen3"};
    static const int chunks[] = {1, 7, 16, 64};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            tiny_engine f = {0};
            int32_t ids[PROMPT];
            engine_sampled plain[MADE], first[MADE], again[MADE];
            engine_config c = tiny_config(*state, 2);
            c.kv_type = kv_types[(m + i) % 4];
            tiny_engine_open(&f, models[m], c);
            assert_string_equal(engine_kv_name(f.g), c.kv_type);
            tiny_ids(ids, PROMPT, 1);
            run_new(f.g, NULL, ids, 64, plain);
            run_new(f.g, salt_a, ids, chunks[i], first); // stores it, cut like this
            int64_t hits = engine_get_stats(f.g).prefix_hits;
            run_new(f.g, salt_a, ids, 64, again);
            assert_int_equal(engine_get_stats(f.g).prefix_hits - hits, FULL / PAGE);
            tiny_assert_same(plain, first, MADE);
            tiny_assert_same(plain, again, MADE);
            tiny_engine_close(&f);
        }
}

static void one_salt_finds_nothing_of_another(void **state) {
    tiny_engine f = {0};
    int32_t ids[PROMPT];
    sampling_params p = greedy_params(-1);
    const uint8_t *const salts[] = {salt_b, NULL};
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, PROMPT, 1);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
    assert_int_equal(engine_seq_length(s), 0);
    tiny_step(f.g, &(engine_row){.seq = s, .tokens = ids, .n = PROMPT}, 1);
    for (int i = 0; i < 2; i++) {
        engine_seq *other = tiny_seq(f.g, &p, ids, PROMPT, 0, salts[i]);
        assert_int_equal(engine_seq_length(other), 0);
        assert_int_equal(engine_kv_tokens_in_use(f.g, salts[i], ids, PROMPT), 0);
        engine_seq_free(f.g, other);
    }
    assert_int_equal(engine_get_stats(f.g).prefix_hits, 0);
    engine_seq *same = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
    assert_int_equal(engine_seq_length(same), FULL);
    assert_int_equal(engine_kv_tokens_in_use(f.g, salt_a, ids, PROMPT), FULL);
    assert_int_equal(engine_get_stats(f.g).prefix_hits, FULL / PAGE);
    engine_seq_free(f.g, same);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

// A sequence that lost its place comes back with all it had made: its own pages wait for it.
static void what_a_sequence_made_is_found_when_it_comes_back(void **state) {
    enum { CUT = 13 };
    tiny_engine f = {0};
    int32_t ids[PROMPT + MADE], whole[MADE], rest[MADE];
    sampling_params p = tiny_lively();
    tiny_engine_open(&f, "q8_0", tiny_config(*state, 2));
    tiny_ids(ids, PROMPT, 5);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL);
    tiny_generate(f.g, s, ids, PROMPT, whole, MADE);
    engine_seq_free(f.g, s);
    s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
    tiny_generate(f.g, s, ids, PROMPT, rest, CUT); // stores PROMPT + CUT - 1 = 82 tokens
    engine_seq_free(f.g, s);
    memcpy(ids + PROMPT, whole, CUT * sizeof *ids);
    s = tiny_seq(f.g, &p, ids, PROMPT + CUT, CUT, salt_a);
    int found = engine_seq_length(s);
    assert_int_equal(found, 80);
    tiny_generate(f.g, s, ids + found, PROMPT + CUT - found, rest + CUT, MADE - CUT);
    assert_memory_equal(rest, whole, sizeof rest);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

static void check_forks(engine_config c) {
    tiny_engine f = {0};
    err e = {0};
    int32_t ids[PROMPT + MADE], made[2][MADE], plain[2][MADE];
    sampling_params p = tiny_lively();
    engine_seq *s, *t;
    tiny_engine_open(&f, "llama", c);
    tiny_ids(ids, PROMPT, 3);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(engine_seq_new(f.g, &p, i, ids, PROMPT, 0, NULL, &s, &e), 0);
        tiny_generate(f.g, s, ids, PROMPT, plain[i], MADE);
        engine_seq_free(f.g, s);
    }
    for (int round = 0; round < 2; round++) {
        int64_t total = engine_kv_tokens_free(f.g);
        s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
        int found = engine_seq_length(s);
        assert_int_equal(found, round ? FULL : 0);
        engine_row row = {.seq = s, .tokens = ids + found, .n = PROMPT - 1 - found};
        tiny_step(f.g, &row, 1);
        assert_int_equal(engine_seq_fork(f.g, s, 1, &t, &e), 0);
        tiny_generate(f.g, s, ids + PROMPT - 1, 1, made[0], MADE);
        tiny_generate(f.g, t, ids + PROMPT - 1, 1, made[1], MADE);
        assert_memory_equal(made, plain, sizeof made);
        engine_seq_free(f.g, s);
        engine_seq_free(f.g, t);
        assert_int_equal(engine_kv_tokens_free(f.g), total);
        for (int i = 0; i < 2; i++) { // what each made is found behind the prompt
            memcpy(ids + PROMPT, made[i], sizeof made[i]);
            s = tiny_seq(f.g, &p, ids, PROMPT + MADE, MADE, salt_a);
            assert_int_equal(engine_seq_length(s), (PROMPT + MADE - 1) / PAGE * PAGE);
            engine_seq_free(f.g, s);
        }
    }
    tiny_engine_close(&f);
}

static void forks_of_a_found_prefix_get_what_each_gets_alone(void **state) {
    for (int i = 0; i < 4; i++) {
        engine_config c = tiny_config(*state, 2);
        c.kv_type = kv_types[i];
        check_forks(c);
    }
}

static void check_eviction(engine_config c) {
    tiny_engine f = {0};
    engine_sampled plain[4][MADE], made[MADE];
    int32_t ids[4][PROMPT];
    sampling_params p = greedy_params(-1);
    int64_t tokens;
    tiny_engine_open(&f, "llama", c);
    tokens = engine_kv_tokens_free(f.g);
    for (int i = 0; i < 4; i++) {
        tiny_ids(ids[i], PROMPT, (uint32_t)i);
        run_new(f.g, NULL, ids[i], 64, plain[i]);
    }
    tiny_engine_close(&f);
    c.kv_bytes = c.kv_bytes / (size_t)(tokens / PAGE) * 12; // pages; a run needs 6 and leaves 5
    tiny_engine_open(&f, "llama", c);
    tokens = engine_kv_tokens_free(f.g);
    assert_int_equal(tokens, 12 * PAGE);
    for (int i = 0; i < 12; i++) {
        run_new(f.g, salt_a, ids[i % 4], 64, made);
        tiny_assert_same(plain[i % 4], made, MADE);
        assert_int_equal(engine_kv_tokens_free(f.g), tokens);
    }
    assert_true(engine_get_stats(f.g).prefix_evicted > 0);
    engine_seq *s = tiny_seq(f.g, &p, ids[3], PROMPT, 0, salt_a); // the last one
    assert_int_equal(engine_seq_length(s), FULL);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

// Room for two sequences: each new one drives the oldest out of the cache, and no token changes.
static void a_full_cache_gives_up_the_oldest_and_changes_no_token(void **state) {
    for (int i = 0; i < 4; i++) {
        engine_config c = tiny_config(*state, 1);
        c.kv_type = kv_types[i];
        check_eviction(c);
    }
}

static void a_step_without_room_gives_up_nothing_of_the_cache(void **state) {
    tiny_engine f = {0};
    err e = {0};
    const engine_result *r;
    int32_t ids[TINY_CONTEXT];
    engine_config c = tiny_config(*state, 1);
    sampling_params p = greedy_params(-1);
    engine_seq *s[3];
    tiny_engine_open(&f, "llama", c);
    c.kv_bytes = c.kv_bytes / (size_t)(engine_kv_tokens_free(f.g) / PAGE) * 10;
    tiny_engine_close(&f);
    tiny_engine_open(&f, "llama", c);
    tiny_ids(ids, TINY_CONTEXT, 2);
    s[0] = tiny_seq(f.g, &p, ids, 48, 0, salt_a);
    tiny_step(f.g, &(engine_row){.seq = s[0], .tokens = ids, .n = 48}, 1);
    engine_seq_free(f.g, s[0]);
    for (int i = 0; i < 3; i++)
        s[i] = tiny_seq(f.g, &p, ids, 64, 0, NULL);
    engine_row rows[] = {{.seq = s[0], .tokens = ids, .n = 64},
                         {.seq = s[1], .tokens = ids, .n = 64},
                         {.seq = s[2], .tokens = ids, .n = 64}};
    assert_int_equal(engine_step(f.g, rows, 3, &r, &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_int_equal(engine_get_stats(f.g).prefix_evicted, 0);
    assert_int_equal(engine_get_stats(f.g).prefix_pages, 3);
    assert_int_equal(engine_kv_tokens_free(f.g), 10 * PAGE);
    tiny_step(f.g, rows, 2); // eight pages: seven are free, one is given up
    assert_int_equal(engine_get_stats(f.g).prefix_evicted, 1);
    for (int i = 0; i < 3; i++)
        engine_seq_free(f.g, s[i]);
    tiny_engine_close(&f);
}

static void a_sequence_that_shares_cannot_describe_its_prompt(void **state) {
    tiny_engine f = {0};
    err e = {0};
    const engine_result *r;
    int32_t ids[PROMPT];
    sampling_params p = greedy_params(-1);
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, PROMPT, 2);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
    engine_row row = {.seq = s, .tokens = ids, .n = 20, .prompt_logprobs = true};
    assert_int_equal(engine_step(f.g, &row, 1, &r, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_non_null(strstr(e.message, "prompt_logprobs"));
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Counts what this thread takes from the heap, OpenSSL's share included.
static _Thread_local int n_taken;
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n) {
    n_taken++;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
    n_taken++;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    n_taken++;
    return __libc_realloc(p, n);
}

static void a_step_takes_no_memory(void **state) {
    tiny_engine f = {0};
    int32_t ids[PROMPT], made[MADE];
    sampling_params p = tiny_lively();
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_ids(ids, PROMPT, 2);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, salt_a);
    int before = n_taken;
    void *volatile one = malloc(1);
    free(one);
    assert_int_equal(n_taken - before, 1); // it does count
    before = n_taken;
    tiny_generate(f.g, s, ids, PROMPT, made, MADE);
    assert_int_equal(n_taken - before, 0);
    assert_int_equal(engine_get_stats(f.g).prefix_pages, (PROMPT + MADE - 1) / PAGE);
    engine_seq_free(f.g, s);
    tiny_engine_close(&f);
}
#else
static void a_step_takes_no_memory(void **state) {
    (void)state;
    puts("skip: a sanitizer owns malloc");
    skip();
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        ALL(what_is_found_gives_the_bits_that_computing_gives),
        ON("ref", one_salt_finds_nothing_of_another),
        ALL(what_a_sequence_made_is_found_when_it_comes_back),
        ALL(forks_of_a_found_prefix_get_what_each_gets_alone),
        ALL(a_full_cache_gives_up_the_oldest_and_changes_no_token),
        ON("ref", a_step_without_room_gives_up_nothing_of_the_cache),
        ON("ref", a_sequence_that_shares_cannot_describe_its_prompt),
        ALL(a_step_takes_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
