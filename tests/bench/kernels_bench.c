// Speed of the CPU backends, for people: GOPS per format and number of rows, GB/s of weights at one
// row, attention at depth. Asserts nothing. Usage: kernels_bench [threads] [n_out] [n_in]. Weights
// rotate through copies larger than the last-level cache would like, so that one row is measured
// from memory.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels/half.h"
#include "kernels/ops.h"

enum { POOL = 256 << 20, MAX_COPIES = 64, RUNS = 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint32_t next_random(void) {
    static uint32_t x = 1;
    return x = x * 1664525 + 1013904223;
}

static void fill(float *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        p[i] = (float)(next_random() >> 8) * 0x1p-23f - 1;
}

// Blocks with random codes; every fp16 that could be a scale is small.
static uint8_t *random_weights(weight_type t, int n_out, int n_in) {
    int values = 1, bytes = 4;
    weight_type_block(t, &values, &bytes);
    size_t n = (size_t)n_out * (size_t)(n_in / values * bytes);
    uint8_t *p = malloc(n);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(next_random() >> 24);
    uint16_t half = f32_to_f16(0.01f);
    for (size_t i = 0; values > 1 && i < n; i += (size_t)bytes) {
        memcpy(p + i + (t == WT_Q6_K ? 208 : 0), &half, 2);
        if (t == WT_Q4_1 || t == WT_Q5_1 || t == WT_Q4_K || t == WT_Q5_K)
            memcpy(p + i + 2, &half, 2);
    }
    for (size_t i = 0; values == 1 && i < n; i += (size_t)bytes)
        p[i + (size_t)bytes - 1] = 0x3c;
    return p;
}

typedef struct subject {
    ops *o;
    weight *copies[MAX_COPIES];
    int n_copies, at;
    float *x, *y;
    int n_out, n_in;
} subject;

// The best of many single calls, for about half a second: what a busy machine disturbs least.
static double time_matmul(subject *s, int rows) {
    double best = 1e9, start = now(), t = start;
    while (t - start < 0.4) {
        s->o->matmul(s->o, &(matmul_args){.w = s->copies[s->at++ % s->n_copies],
                                          .x = s->x,
                                          .y = s->y,
                                          .n_rows = rows,
                                          .x_stride = s->n_in,
                                          .y_stride = s->n_out});
        double end = now();
        best = end - t < best ? end - t : best;
        t = end;
    }
    return best;
}

static void bench_format(ops *o, weight_type t, int n_out, int n_in) {
    static const int rows[] = {1, 2, 4, 6, 8, 12, 16, 32, 128, 512};
    uint8_t *data = random_weights(t, n_out, n_in);
    weight_source source = {"bench", t, data, n_out, n_in};
    subject s = {.o = o, .n_out = n_out, .n_in = n_in};
    err e = {0};
    size_t bytes = 0;
    do {
        if (o->weight_pack(o, &source, 1, &s.copies[s.n_copies], &e)) {
            printf("%s: %s\n", weight_type_name(t), e.message);
            exit(1);
        }
        bytes = o->weight_bytes(s.copies[s.n_copies++]);
    } while (s.n_copies < MAX_COPIES && bytes * (size_t)s.n_copies < POOL);
    s.x = malloc(512 * (size_t)n_in * 4);
    s.y = malloc(512 * (size_t)n_out * 4);
    fill(s.x, 512 * (size_t)n_in);
    printf("%-7s %-5s", o->name, weight_type_name(t));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double seconds = time_matmul(&s, rows[i]);
        if (rows[i] == 1)
            printf("  %5.1f GB/s %6.1f us |", (double)bytes / seconds * 1e-9, seconds * 1e6);
        printf(" %5.0f", 2.0 * n_out * n_in * rows[i] / seconds * 1e-9);
        fflush(stdout);
    }
    printf("\n");
    for (int i = 0; i < s.n_copies; i++)
        o->weight_free(o, s.copies[i]);
    free(s.x);
    free(s.y);
    free(data);
}

// One layer of SmolLM2's or Qwen2.5-7B's attention.
static void bench_attention(ops *o, int heads, int kv_heads, int dim, int rows, int spans,
                            int first) {
    int page = 16, pages = (first + rows + page - 1) / page;
    size_t n = (size_t)spans * (size_t)(pages * page * kv_heads * dim);
    uint16_t *k = malloc(n * 2), *v = malloc(n * 2);
    for (size_t i = 0; i < n; i++)
        k[i] = v[i] = (uint16_t)(0x3000 + (next_random() >> 24));
    int32_t *table = malloc((size_t)(spans * pages) * 4);
    seq_span *span = calloc((size_t)spans, sizeof *span);
    for (int i = 0; i < spans * pages; i++)
        table[i] = i;
    for (int s = 0; s < spans; s++)
        span[s] = (seq_span){s * rows, rows, first, table + s * pages, pages};
    kv_layer kv = {k, v, KV_F16, spans * pages, kv_heads, page, dim};
    size_t width = (size_t)(heads * dim);
    float *q = malloc((size_t)(spans * rows) * width * 4),
          *y = malloc((size_t)(spans * rows) * width * 4);
    fill(q, (size_t)(spans * rows) * width);
    double best = 1e9;
    for (int r = 0; r < RUNS; r++) {
        double t = now();
        o->attention(o, &(attention_args){q, y, (int64_t)width, heads, &kv, span, spans});
        t = now() - t;
        best = t < best ? t : best;
    }
    double flops =
        4.0 * heads * dim * spans * ((double)rows * first + (double)rows * (rows + 1) / 2);
    printf("%-7s attention heads %d/%d x %d, %d x %d rows at %d: %.1f us, %.0f GFLOPS, %.1f GB/s "
           "of K and V\n",
           o->name, heads, kv_heads, dim, spans, rows, first, best * 1e6, flops / best * 1e-9,
           4.0 * spans * (first + rows) * kv_heads * dim / best * 1e-9);
    free(k), free(v), free(table), free(span), free(q), free(y);
}

// ---- a whole step of SmolLM2-135M's shapes (30 layers, Q4_1, Q8_0 head), every operation but
// sampling
enum {
    DIM = 576,
    HIDDEN = 1536,
    HEADS = 9,
    KV_HEADS = 3,
    HEAD_DIM = 64,
    LAYERS = 30,
    VOCABULARY = 49152,
    QKV = 960
};

typedef struct model {
    ops *o;
    weight *qkv, *out, *gate_up, *down,
        *head; // all layers share one set, so this is the time from cache
    float *x, *y, *z, *logits, gain[DIM], inv_freq[HEAD_DIM / 2];
    kv_layer kv;
} model;

static weight *one_weight(ops *o, weight_type t, int n_out, int n_in) {
    uint8_t *data = random_weights(t, n_out, n_in);
    weight_source source = {"bench", t, data, n_out, n_in};
    weight *w = NULL;
    err e = {0};
    if (o->weight_pack(o, &source, 1, &w, &e)) {
        printf("%s\n", e.message);
        exit(1);
    }
    free(data);
    return w;
}

static void product(const model *m, const weight *w, const float *x, int n_in, float *y, int n_out,
                    int rows) {
    m->o->matmul(m->o,
                 &(matmul_args){
                     .w = w, .x = x, .y = y, .n_rows = rows, .x_stride = n_in, .y_stride = n_out});
}

static void layer(const model *m, const seq_span *spans, int n_spans, int rows) {
    ops *o = m->o;
    o->rmsnorm(o, &(rmsnorm_args){m->x, NULL, m->gain, m->y, rows, DIM, 1e-5f});
    product(m, m->qkv, m->y, DIM, m->z, QKV, rows);
    o->rope_kv(o, &(rope_kv_args){.qkv = m->z,
                                  .stride = QKV,
                                  .n_heads = HEADS,
                                  .inv_freq = m->inv_freq,
                                  .attn_scale = 1,
                                  .kv = &m->kv,
                                  .spans = spans,
                                  .n_spans = n_spans});
    o->attention(o, &(attention_args){m->z, m->y, QKV, HEADS, &m->kv, spans, n_spans});
    product(m, m->out, m->y, DIM, m->z, DIM, rows);
    o->rmsnorm(o, &(rmsnorm_args){m->x, m->z, m->gain, m->y, rows, DIM, 1e-5f});
    product(m, m->gate_up, m->y, DIM, m->z, 2 * HIDDEN, rows);
    o->swiglu(o, &(swiglu_args){m->z, m->y, rows, HIDDEN});
    product(m, m->down, m->y, HIDDEN, m->z, DIM, rows);
}

// spans sequences of `rows` new rows each at position `first`.
static void bench_step(model *m, int n_spans, int rows, int first) {
    int pages = (first + rows + 15) / 16, all = n_spans * rows;
    size_t n = (size_t)(n_spans * pages * 16 * KV_HEADS * HEAD_DIM);
    m->kv = (kv_layer){calloc(n, 2), calloc(n, 2), KV_F16, n_spans * pages, KV_HEADS, 16, HEAD_DIM};
    int32_t *table = malloc((size_t)(n_spans * pages) * sizeof *table);
    seq_span *spans = calloc((size_t)n_spans, sizeof *spans);
    for (int i = 0; i < n_spans * pages; i++)
        table[i] = i;
    for (int i = 0; i < n_spans; i++)
        spans[i] = (seq_span){i * rows, rows, first, table + i * pages, pages};
    fill(m->x, (size_t)(all * DIM));
    double best = 1e9;
    for (int r = 0; r < RUNS; r++) {
        double t = now();
        for (int l = 0; l < LAYERS; l++)
            layer(m, spans, n_spans, all);
        product(m, m->head, m->x, DIM, m->logits, VOCABULARY, n_spans);
        t = now() - t;
        best = t < best ? t : best;
    }
    printf("%-7s SmolLM2-135M Q4_1 step, %d x %d rows at %d: %.2f ms, %.0f tokens/s\n", m->o->name,
           n_spans, rows, first, best * 1e3, all / best);
    free(m->kv.k), free(m->kv.v), free(table), free(spans);
}

static void bench_model(ops *o) {
    model m = {.o = o,
               .qkv = one_weight(o, WT_Q4_1, QKV, DIM),
               .out = one_weight(o, WT_Q4_1, DIM, DIM),
               .gate_up = one_weight(o, WT_Q4_1, 2 * HIDDEN, DIM),
               .down = one_weight(o, WT_Q4_1, DIM, HIDDEN),
               .head = one_weight(o, WT_Q8_0, VOCABULARY, DIM),
               .x = malloc(512 * DIM * 4),
               .y = malloc(512 * HIDDEN * 4),
               .z = malloc(512 * 2 * HIDDEN * 4),
               .logits = malloc(32 * VOCABULARY * 4)};
    fill(m.gain, DIM);
    fill(m.inv_freq, HEAD_DIM / 2);
    bench_step(&m, 1, 1, 200);
    bench_step(&m, 8, 1, 200);
    bench_step(&m, 16, 1, 200);
    bench_step(&m, 1, 512, 0);
    weight *all[] = {m.qkv, m.out, m.gate_up, m.down, m.head};
    for (int i = 0; i < 5; i++)
        o->weight_free(o, all[i]);
    free(m.x), free(m.y), free(m.z), free(m.logits);
}

int main(int argc, char **argv) {
    static const weight_type types[] = {WT_Q4_0, WT_Q4_1, WT_Q4_K, WT_Q5_0, WT_Q5_K,
                                        WT_Q6_K, WT_Q8_0, WT_F16,  WT_F32};
    static const char *const names[] = {"avx512", "avx2"};
    int threads = argc > 1 ? atoi(argv[1]) : 1, n_out = argc > 2 ? atoi(argv[2]) : 4864,
        n_in = argc > 3 ? atoi(argv[3]) : 1024;
    printf(
        "%d threads, %d x %d; one row: GB/s and us; then GOPS at 1 2 4 6 8 12 16 32 128 512 rows\n",
        threads, n_out, n_in);
    for (size_t b = 0; b < 2; b++) {
        ops *o = NULL;
        err e = {0};
        if (ops_open(names[b], threads, &o, &e)) {
            printf("skip: %s\n", e.message);
            continue;
        }
        for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
            bench_format(o, types[i], n_out, n_in);
        bench_attention(o, 9, 3, 64, 1, 1, 1000);
        bench_attention(o, 9, 3, 64, 1, 8, 1000);
        bench_attention(o, 9, 3, 64, 512, 1, 0);
        bench_attention(o, 28, 4, 128, 1, 1, 4096);
        bench_attention(o, 28, 4, 128, 256, 1, 1024);
        bench_model(o);
        o->close(o);
    }
    return 0;
}
