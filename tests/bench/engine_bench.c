// engine_bench MODEL [BACKEND [THREADS [- [KV_TYPE]]]]: tokens a second of prefill and of decoding
// 1 to 16 sequences at once; with "-" it answers commands on stdin instead, one number in seconds a
// line: "prefill DEPTH" (512 tokens behind DEPTH others), "decode SEQUENCES STEPS [DEPTH]" (one
// step, each sequence behind 128 tokens, or DEPTH, and sampled), and "limits" (GOPS and GB/s of the
// machine). One thread is timed by the processor time it used, more by the wall clock of a perhaps
// busy machine. Asserts nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine/engine.h"
#include "tests/bench/limits.h"

enum { MAX_BATCH = 16, CONTEXT = 4096 + 512, CHUNK = 512, SHORT_PROMPT = 128, STEPS = 64 };

static void check(int rc, const err *e) {
    if (rc) {
        fprintf(stderr, "engine_bench: %s\n", e->message);
        exit(1);
    }
}

static clockid_t time_source = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(time_source, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

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

static void prefill(engine *g, engine_seq *s, const int32_t *ids, int n) {
    for (int at = 0; at < n; at += CHUNK) {
        int size = n - at < CHUNK ? n - at : CHUNK;
        engine_row row = {.seq = s, .tokens = ids + at, .n = size, .sample = at + size == n};
        step(g, &row, 1);
    }
}

// A sequence of n tokens that is made once and forked for each use.
typedef struct prefix {
    engine_seq *seq;
    int n;
} prefix;

static engine_seq *fork_prefix(engine *g, prefix *p, const int32_t *ids, int n, int choice) {
    err e = {0};
    engine_seq *s = NULL;
    if (p->seq && p->n != n) {
        engine_seq_free(g, p->seq);
        p->seq = NULL;
    }
    if (!p->seq) {
        *p = (prefix){new_seq(g, 0), n};
        prefill(g, p->seq, ids, n);
    }
    check(engine_seq_fork(g, p->seq, choice, &s, &e), &e);
    return s;
}

static double time_prefill(engine *g, const int32_t *ids, int depth) {
    static prefix deep;
    engine_seq *s = depth ? fork_prefix(g, &deep, ids, depth, 0) : new_seq(g, 0);
    double start = now();
    prefill(g, s, ids + depth, CHUNK);
    double seconds = now() - start;
    engine_seq_free(g, s);
    return seconds;
}

static double time_step(engine *g, const int32_t *ids, int batch, int steps, int depth) {
    static prefix base;
    engine_seq *seqs[MAX_BATCH];
    int32_t next[MAX_BATCH];
    engine_row rows[MAX_BATCH];
    for (int i = 0; i < batch; i++) {
        seqs[i] = fork_prefix(g, &base, ids, depth, i);
        next[i] = ids[i];
        rows[i] = (engine_row){.seq = seqs[i], .tokens = &next[i], .n = 1, .sample = true};
    }
    double start = now();
    for (int k = 0; k < steps; k++) {
        const engine_result *r = step(g, rows, batch);
        for (int i = 0; i < batch; i++)
            next[i] = r->sampled[i].id;
    }
    double seconds = (now() - start) / steps;
    for (int i = 0; i < batch; i++)
        engine_seq_free(g, seqs[i]);
    return seconds;
}

static void print_speeds(engine *g, const int32_t *ids) {
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double seconds = time_prefill(g, ids, 0);
        best = seconds < best ? seconds : best;
    }
    printf("prefill %d: %.0f tok/s\n", (int)CHUNK, CHUNK / best);
    for (int batch = 1; batch <= MAX_BATCH; batch = batch == 1 ? 4 : batch * 2)
        printf("decode, batch %d: %.1f tok/s\n", batch,
               batch / time_step(g, ids, batch, STEPS, SHORT_PROMPT));
}

static void print_limits(const char *backend, int threads) {
    static ops *o;
    limits l = {0};
    err e = {0};
    if (!o)
        check(ops_open(backend, threads, &o, &e), &e);
    for (int i = 0; i < 8; i++)
        limits_sample(o, &l);
    printf("%g %g\n", l.int8_gops, l.read_gbs);
}

static void answer(engine *g, const int32_t *ids, int threads) {
    char line[64];
    puts("ready");
    for (fflush(stdout); fgets(line, sizeof line, stdin); fflush(stdout)) {
        int a, b, depth = SHORT_PROMPT;
        if (sscanf(line, "prefill %d", &a) == 1 && a >= 0 && a <= CONTEXT - CHUNK)
            printf("%g\n", time_prefill(g, ids, a));
        else if (sscanf(line, "decode %d %d %d", &a, &b, &depth) >= 2 && a > 0 && a <= MAX_BATCH &&
                 b > 0 && depth > 0 && depth < CONTEXT && b <= CONTEXT - depth)
            printf("%g\n", time_step(g, ids, a, b, depth));
        else if (strcmp(line, "limits\n") == 0)
            print_limits(engine_backend(g), threads);
        else
            printf("error\n");
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: engine_bench MODEL [BACKEND [THREADS [- [KV_TYPE]]]]\n");
        return 2;
    }
    err e = {0};
    model *m = NULL;
    engine *g = NULL;
    if (argc > 3 && atoi(argv[3]) == 1)
        time_source = CLOCK_PROCESS_CPUTIME_ID;
    static int32_t ids[CONTEXT];
    engine_config c = {.backend = argc > 2 ? argv[2] : NULL,
                       .n_threads = argc > 3 ? atoi(argv[3]) : 0,
                       .max_seqs = MAX_BATCH + 2,
                       .max_context = CONTEXT,
                       .max_rows = CHUNK,
                       .kv_bytes = (size_t)2 << 30,
                       .kv_type = argc > 5 ? argv[5] : NULL};
    check(model_open(argv[1], NULL, &m, &e), &e);
    double start = now();
    check(engine_open(m, &c, &g, &e), &e);
    fprintf(stderr, "%s on %s: loaded in %.1f s, weights %.0f MB\n", model_file_name(m),
            engine_backend(g), now() - start, (double)engine_weight_bytes(g) / 1e6);
    fill_prompt(ids, CONTEXT, model_get_shape(m)->n_vocab);
    if (argc > 4)
        answer(g, ids, c.n_threads);
    else
        print_speeds(g, ids);
    return 0; // the sequences that were kept for the next command end with the process
}
