// See tiny_engine.h. Owns nothing beyond what a fixture holds.
#include "tests/support/tiny_engine.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

engine_config tiny_config(const char *backend, int n_threads) {
    return (engine_config){.backend = backend,
                           .n_threads = n_threads,
                           .max_seqs = 4,
                           .max_rows = 256,
                           .kv_bytes = (size_t)4 << 20};
}

model *tiny_open_made(const tiny_model *t) {
    model *m = NULL;
    err e = {0};
    char path[64];
    int fd = tiny_model_file(t);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (model_open(path, NULL, &m, &e))
        fail_msg("%s", e.message);
    close(fd);
    return m;
}

model *tiny_open_model(const char *name) { return tiny_open_made(tiny_model_find(name)); }

void tiny_need(const char *backend) {
    if (ops_supported(backend))
        return;
    printf("skip: this processor has no %s\n", backend);
    skip();
}

void tiny_engine_open(tiny_engine *f, const char *name, engine_config c) {
    err e = {0};
    tiny_need(c.backend);
    f->m = tiny_open_model(name);
    if (engine_open(f->m, &c, &f->g, &e))
        fail_msg("%s", e.message);
}

void tiny_engine_close(tiny_engine *f) {
    engine_close(f->g);
    model_close(f->m);
}

void tiny_ids(int32_t *ids, int n, uint32_t seed) {
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)(seed >> 8) % TINY_VOCAB;
    }
}

engine_seq *tiny_seq(engine *g, const sampling_params *p, const int32_t *ids, int n, int already,
                     const uint8_t *salt) {
    err e = {0};
    engine_seq *s = NULL;
    if (engine_seq_new(g, p, 0, ids, n, already, salt, &s, &e))
        fail_msg("%s", e.message);
    return s;
}

const engine_result *tiny_step(engine *g, const engine_row *rows, int n) {
    err e = {0};
    const engine_result *r = NULL;
    if (engine_step(g, rows, n, &r, &e))
        fail_msg("%s", e.message);
    return r;
}

void tiny_generate(engine *g, engine_seq *s, const int32_t *prompt, int n_prompt, int32_t *out,
                   int n) {
    engine_row row = {.seq = s, .tokens = prompt, .n = n_prompt, .sample = true};
    for (int i = 0; i < n; i++) {
        out[i] = tiny_step(g, &row, 1)->sampled[0].id;
        row = (engine_row){.seq = s, .tokens = &out[i], .n = 1, .sample = true};
    }
}

sampling_params tiny_lively(void) {
    return (sampling_params){.temperature = 1.2f,
                             .seed = 0x123456789abcdef0u,
                             .top_p = 0.95f,
                             .top_k = 100,
                             .presence_penalty = 0.7f,
                             .frequency_penalty = 0.5f,
                             .repetition_penalty = 1.1f};
}

void tiny_assert_same(const engine_sampled *a, const engine_sampled *b, int n) {
    for (int i = 0; i < n; i++) {
        assert_int_equal(a[i].id, b[i].id);
        assert_memory_equal(&a[i].logprob, &b[i].logprob, sizeof a->logprob);
        assert_int_equal(a[i].n_top, b[i].n_top);
        assert_memory_equal(a[i].top, b[i].top, (size_t)a[i].n_top * sizeof *a->top);
    }
}
