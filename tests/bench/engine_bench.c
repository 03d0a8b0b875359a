// engine_bench MODEL [BACKEND [THREADS]]: tokens a second of prefill and of decoding 1, 4 and 8
// sequences at once. A developer's tool: it measures the wall clock of a perhaps busy machine and
// asserts nothing.
#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"
#include "engine/engine.h"

enum { MAX_BATCH = 8, PROMPT = 512, CHUNK = 256, SHORT_PROMPT = 128, STEPS = 64 };

static void check(int rc, const err *e) {
    if (rc) {
        fprintf(stderr, "engine_bench: %s\n", e->message);
        exit(1);
    }
}

static double seconds_since(int64_t start_us) { return (double)(clock_mono_us() - start_us) / 1e6; }

// Ids that are spread over the vocabulary; what they mean does not matter for speed.
static void fill_prompt(int32_t *ids, int n, int n_vocab) {
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)n_vocab);
}

static engine_seq *new_seq(engine *g, int choice) {
    err e = {0};
    engine_seq *s;
    sampling_params p = {.top_p = 1, .repetition_penalty = 1, .n_top_logprobs = -1};
    check(engine_seq_new(g, &p, choice, NULL, 0, 0, NULL, &s, &e), &e);
    return s;
}

static const engine_result *step(engine *g, const engine_row *rows, int n) {
    err e = {0};
    const engine_result *r = NULL;
    check(engine_step(g, rows, n, &r, &e), &e);
    return r;
}

static int32_t prefill(engine *g, engine_seq *s, const int32_t *ids, int n) {
    int32_t id = 0;
    for (int at = 0; at < n; at += CHUNK) {
        int size = n - at < CHUNK ? n - at : CHUNK;
        engine_row row = {.seq = s, .tokens = ids + at, .n = size, .sample = at + size == n};
        id = step(g, &row, 1)->sampled[0].id;
    }
    return id;
}

static void bench_prefill(engine *g, const int32_t *ids) {
    double best = 0;
    for (int i = 0; i < 3; i++) {
        engine_seq *s = new_seq(g, 0);
        int64_t start = clock_mono_us();
        prefill(g, s, ids, PROMPT);
        double speed = PROMPT / seconds_since(start);
        best = speed > best ? speed : best;
        engine_seq_free(g, s);
    }
    printf("prefill %d: %.0f tok/s\n", PROMPT, best);
}

static void bench_decode(engine *g, const int32_t *ids, int batch) {
    engine_seq *seqs[MAX_BATCH];
    int32_t next[MAX_BATCH];
    engine_row rows[MAX_BATCH];
    for (int i = 0; i < batch; i++) {
        seqs[i] = new_seq(g, i);
        next[i] = prefill(g, seqs[i], ids, SHORT_PROMPT);
        rows[i] = (engine_row){.seq = seqs[i], .tokens = &next[i], .n = 1, .sample = true};
    }
    int64_t start = clock_mono_us();
    for (int k = 0; k < STEPS; k++) {
        const engine_result *r = step(g, rows, batch);
        for (int i = 0; i < batch; i++)
            next[i] = r->sampled[i].id;
    }
    printf("decode, batch %d: %.1f tok/s\n", batch, batch * STEPS / seconds_since(start));
    for (int i = 0; i < batch; i++)
        engine_seq_free(g, seqs[i]);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: engine_bench MODEL [BACKEND [THREADS]]\n");
        return 2;
    }
    err e = {0};
    model *m = NULL;
    engine *g = NULL;
    int32_t ids[PROMPT];
    engine_config c = {.backend = argc > 2 ? argv[2] : NULL,
                       .n_threads = argc > 3 ? atoi(argv[3]) : 0,
                       .max_seqs = MAX_BATCH,
                       .max_context = PROMPT,
                       .max_rows = CHUNK,
                       .kv_bytes = (size_t)1 << 30};
    check(model_open(argv[1], NULL, &m, &e), &e);
    int64_t start = clock_mono_us();
    check(engine_open(m, &c, &g, &e), &e);
    printf("%s on %s: loaded in %.1f s, weights %.0f MB\n", model_file_name(m), engine_backend(g),
           seconds_since(start), (double)engine_weight_bytes(g) / 1e6);
    fill_prompt(ids, PROMPT, model_get_shape(m)->n_vocab);
    bench_prefill(g, ids);
    for (int batch = 1; batch <= MAX_BATCH; batch = batch == 1 ? 4 : batch * 2)
        bench_decode(g, ids, batch);
    engine_close(g);
    model_close(m);
    return 0;
}
