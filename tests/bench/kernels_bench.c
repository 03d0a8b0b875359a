// Speed of the CPU backends, for people, beside the machine's limits measured in between: GOPS per
// format and number of rows; then the sum of a step of some models, operation by operation, with
// what the machine allows; then attention. Asserts nothing.
// Usage: kernels_bench [threads] [formats|gemm|steps|attention].
// Weights rotate through copies larger than the caches near the processor, so that few rows are
// measured from memory, as in a step.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels/half.h"
#include "kernels/ops.h"
#include "tests/bench/limits.h"

enum { POOL = 256 << 20, MAX_COPIES = 64, MAX_ROWS = 512 };

static double budget = 0.25; // seconds of one measurement
static limits limit;

// One thread is timed by the processor time it used, so that others on the machine only cost it
// some cache.
static clockid_t time_source = CLOCK_THREAD_CPUTIME_ID;

static double now(void) {
    struct timespec t;
    clock_gettime(time_source, &t);
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

// The best of many single calls: what a busy machine disturbs least.
static double best_time(void (*call)(void *ctx), void *ctx) {
    double best = 1e9, start = now(), t = start;
    while (t - start < budget) {
        call(ctx);
        double end = now();
        best = end - t < best ? end - t : best;
        t = end;
    }
    return best;
}

// ---- products
typedef struct product {
    ops *o;
    weight *copies[MAX_COPIES];
    int n_copies, at, n_out, n_in, n_rows;
    size_t bytes;
    float *x, *y;
} product;

static void run_product(void *ctx) {
    product *p = ctx;
    p->o->matmul(p->o, &(matmul_args){.w = p->copies[p->at++ % p->n_copies],
                                      .x = p->x,
                                      .y = p->y,
                                      .n_rows = p->n_rows,
                                      .x_stride = p->n_in,
                                      .y_stride = p->n_out});
}

static product product_open(ops *o, weight_type t, int n_out, int n_in) {
    uint8_t *data = random_weights(t, n_out, n_in);
    weight_source source = {.name = "bench", .type = t, .data = data, .n_out = n_out, .n_in = n_in};
    product p = {.o = o, .n_out = n_out, .n_in = n_in};
    err e = {0};
    do {
        if (o->weight_pack(o, &source, 1, &p.copies[p.n_copies], &e)) {
            printf("%s: %s\n", weight_type_name(t), e.message);
            exit(1);
        }
        p.bytes = o->weight_bytes(p.copies[p.n_copies++]);
    } while (p.n_copies < MAX_COPIES && p.bytes * (size_t)p.n_copies < POOL);
    free(data);
    p.x = malloc((size_t)MAX_ROWS * (size_t)n_in * 4);
    p.y = malloc((size_t)MAX_ROWS * (size_t)n_out * 4);
    fill(p.x, (size_t)MAX_ROWS * (size_t)n_in);
    return p;
}

static void product_close(product *p) {
    for (int i = 0; i < p->n_copies; i++)
        p->o->weight_free(p->o, p->copies[i]);
    free(p->x);
    free(p->y);
}

static double time_product(product *p, int rows) {
    p->n_rows = rows;
    limits_sample(p->o, &limit);
    return best_time(run_product, p);
}

static double gops(const product *p, double seconds) {
    return 2.0 * p->n_out * p->n_in * p->n_rows / seconds * 1e-9;
}

static void bench_format(ops *o, weight_type t, int n_out, int n_in, bool all) {
    static const int rows[] = {512, 1, 2, 4, 6, 8, 12, 16, 32, 128, 512};
    product p = product_open(o, t, n_out, n_in);
    printf("%-7s %-5s", o->name, weight_type_name(t));
    double last = 0;
    for (size_t i = all; i < (all ? sizeof rows / sizeof rows[0] : 1); i++) {
        double seconds = time_product(&p, rows[i]);
        if (rows[i] == 1)
            printf("  %5.1f GB/s %6.1f us |", (double)p.bytes / seconds * 1e-9, seconds * 1e6);
        printf(" %5.0f", last = gops(&p, seconds));
        fflush(stdout);
    }
    printf("  %3.0f%%\n", 100 * last / limit.int8_gops);
    product_close(&p);
}

// ---- the sum of a step
typedef struct shape {
    const char *name;
    int dim, hidden, heads, kv_heads, head_dim, layers, vocabulary;
    weight_type type, head;
} shape;

typedef struct step {
    ops *o;
    const shape *s;
    int n_rows, n_spans, depth;
    product *matrices[5]; // qkv, out, gate-up, down, head
    float *x, *y, *gate_up, *gain, *inv_freq;
    kv_layer kv;
    seq_span *spans;
    double sum, floor;
} step;

static int qkv_width(const shape *s) { return (s->heads + 2 * s->kv_heads) * s->head_dim; }

static void run_norm(void *ctx) {
    step *t = ctx;
    t->o->rmsnorm(t->o, &(rmsnorm_args){t->x, t->x, t->gain, t->y, t->n_rows, t->s->dim, 1e-5f});
}

static void run_rope(void *ctx) {
    step *t = ctx;
    t->o->rope_kv(t->o, &(rope_kv_args){.qkv = t->y,
                                        .stride = qkv_width(t->s),
                                        .n_heads = t->s->heads,
                                        .inv_freq = t->inv_freq,
                                        .attn_scale = 1,
                                        .kv = &t->kv,
                                        .spans = t->spans,
                                        .n_spans = t->n_spans});
}

static void run_attention(void *ctx) {
    step *t = ctx;
    t->o->attention(t->o, &(attention_args){t->y, t->x, qkv_width(t->s), t->s->heads, &t->kv,
                                            t->spans, t->n_spans});
}

static void run_swiglu(void *ctx) {
    step *t = ctx;
    t->o->swiglu(t->o, &(swiglu_args){t->gate_up, t->y, t->n_rows, t->s->hidden});
}

static void nothing(void *ctx, int part, int n_parts) { (void)ctx, (void)part, (void)n_parts; }

static void run_barrier(void *ctx) {
    step *t = ctx;
    t->o->parallel(t->o, nothing, NULL);
}

// floor: what the machine's limits allow for one call, in seconds.
static void add_line(step *t, const char *name, int count, double seconds, double floor) {
    printf("  %-10s %4d x %9.1f us %8.3f ms", name, count, seconds * 1e6, count * seconds * 1e3);
    if (floor > 0)
        printf("  %4.0f%% of the limit", 100 * floor / seconds);
    printf("\n");
    t->sum += count * seconds;
    t->floor += count * floor;
}

static void add_product(step *t, const char *name, int which, int rows) {
    product *p = t->matrices[which];
    double seconds = time_product(p, rows);
    double memory = (double)p->bytes / limit.read_gbs * 1e-9,
           integers = 2.0 * p->n_out * p->n_in * rows / limit.int8_gops * 1e-9;
    add_line(t, name, which == 4 ? 1 : t->s->layers, seconds,
             memory > integers ? memory : integers);
}

// n_spans sequences of `rows` new rows each behind `depth` others.
static void bench_step(ops *o, const shape *s, product *matrices, int n_spans, int rows,
                       int depth) {
    int pages = (depth + rows + 15) / 16, n = n_spans * rows;
    size_t widest = (size_t)n * (size_t)(s->hidden > qkv_width(s) ? s->hidden : qkv_width(s)),
           kv = (size_t)(n_spans * pages * 16 * s->kv_heads * s->head_dim);
    step t = {.o = o, .s = s, .n_rows = n, .n_spans = n_spans, .depth = depth};
    for (int i = 0; i < 5; i++)
        t.matrices[i] = &matrices[i];
    t.x = calloc(widest, 4);
    t.y = calloc(widest, 4);
    t.gate_up = calloc(2 * widest, 4);
    t.gain = calloc((size_t)s->dim, 4);
    t.inv_freq = calloc((size_t)s->head_dim, 4);
    t.kv = (kv_layer){calloc(kv, 2), calloc(kv, 2), KV_F16, n_spans * pages, s->kv_heads, 16,
                      s->head_dim};
    int32_t *table = malloc((size_t)(n_spans * pages) * sizeof *table);
    t.spans = calloc((size_t)n_spans, sizeof *t.spans);
    for (int i = 0; i < n_spans * pages; i++)
        table[i] = i;
    for (int i = 0; i < n_spans; i++)
        t.spans[i] = (seq_span){i * rows, rows, depth, table + i * pages, pages};
    printf("%s, %s: %d x %d rows behind %d\n", s->name, o->name, n_spans, rows, depth);
    add_product(&t, "qkv", 0, n);
    add_product(&t, "out", 1, n);
    add_product(&t, "gate-up", 2, n);
    add_product(&t, "down", 3, n);
    add_product(&t, "head", 4, n_spans);
    add_line(&t, "attention", s->layers, best_time(run_attention, &t), 0);
    add_line(&t, "rope", s->layers, best_time(run_rope, &t), 0);
    add_line(&t, "norm", 2 * s->layers + 1, best_time(run_norm, &t), 0);
    add_line(&t, "swiglu", s->layers, best_time(run_swiglu, &t), 0);
    printf("  (%.1f us: an empty job of the team)\n", best_time(run_barrier, &t) * 1e6);
    printf("  sum %.2f ms, %.0f tokens/s; products alone at the limits %.2f ms\n", t.sum * 1e3,
           n / t.sum, t.floor * 1e3);
    free(t.kv.k), free(t.kv.v), free(table), free(t.spans);
    free(t.x), free(t.y), free(t.gate_up), free(t.gain), free(t.inv_freq);
}

static void bench_model(ops *o, const shape *s) {
    product matrices[] = {product_open(o, s->type, qkv_width(s), s->dim),
                          product_open(o, s->type, s->dim, s->heads * s->head_dim),
                          product_open(o, s->type, 2 * s->hidden, s->dim),
                          product_open(o, s->type, s->dim, s->hidden),
                          product_open(o, s->head, s->vocabulary, s->dim)};
    static const int batches[] = {1, 4, 8, 16};
    for (int i = 0; i < 4; i++)
        bench_step(o, s, matrices, batches[i], 1, 200);
    bench_step(o, s, matrices, 1, 512, 0);
    bench_step(o, s, matrices, 1, 512, 4096);
    for (int i = 0; i < 5; i++)
        product_close(&matrices[i]);
}

// ---- attention: prompt rows behind others, K and V from memory, as in a step of many layers
enum { KV_HEADS = 2, MOST_KEYS = 4096 + MAX_ROWS };

typedef struct reader {
    ops *o;
    kv_layer layers[MAX_COPIES];
    int n_layers, at, group, head_dim;
    seq_span span;
    float *q, *y;
} reader;

static void run_reader(void *ctx) {
    reader *r = ctx;
    int heads = KV_HEADS * r->group;
    r->o->attention(r->o, &(attention_args){r->q, r->y, heads * r->head_dim, heads,
                                            &r->layers[r->at++ % r->n_layers], &r->span, 1});
}

static uint16_t *random_halves(size_t n) {
    uint16_t *p = malloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = f32_to_f16((float)(next_random() >> 8) * 0x1p-23f - 1);
    return p;
}

static reader reader_open(ops *o, int head_dim, int group) {
    reader r = {.o = o, .group = group, .head_dim = head_dim};
    size_t values = (size_t)KV_HEADS * MOST_KEYS * (size_t)head_dim,
           q = (size_t)KV_HEADS * MAX_ROWS * (size_t)(group * head_dim);
    int32_t *pages = malloc(MOST_KEYS / 16 * sizeof *pages);
    for (int i = 0; i < MOST_KEYS / 16; i++)
        pages[i] = i;
    r.span = (seq_span){.pages = pages, .n_pages = MOST_KEYS / 16};
    for (size_t bytes = 0; bytes < POOL / 4; bytes += 4 * values)
        r.layers[r.n_layers++] = (kv_layer){random_halves(values),
                                            random_halves(values),
                                            KV_F16,
                                            MOST_KEYS / 16,
                                            KV_HEADS,
                                            16,
                                            head_dim};
    r.q = malloc(q * sizeof *r.q);
    r.y = malloc(q * sizeof *r.y);
    fill(r.q, q);
    return r;
}

static void reader_close(reader *r) {
    for (int i = 0; i < r->n_layers; i++)
        free(r->layers[i].k), free(r->layers[i].v);
    free((void *)r->span.pages), free(r->q), free(r->y);
}

static double attention_gflops(reader *r, int rows, int depth) {
    r->span.n_rows = rows;
    r->span.first = depth;
    double seen = rows * (depth + (rows + 1) / 2.0);
    return 4 * seen * KV_HEADS * r->group * r->head_dim / best_time(run_reader, r) * 1e-9;
}

static void bench_attention(ops *o) {
    static const int rows[] = {1, 4, 16, 64, 512}, groups[] = {1, 3, 7};
    printf("%s: GFLOPS of attention with 1 4 16 64 512 rows behind 512 | behind 4096 (registers: "
           "%.0f)\n",
           o->name, limit.float_gflops);
    for (int dim = 64; dim <= 128; dim += 64)
        for (int g = 0; g < 3; g++) {
            reader r = reader_open(o, dim, groups[g]);
            printf("  head_dim %3d, G %d:", dim, groups[g]);
            for (int depth = 512; depth <= 4096; depth += 4096 - 512) {
                for (int i = 0; i < 5; i++)
                    printf(" %5.0f", attention_gflops(&r, rows[i], depth));
                printf(depth == 512 ? "  |" : "\n");
                fflush(stdout);
            }
            reader_close(&r);
        }
}

static void bench_backend(ops *o, const char *part) {
    bool all = *part == 0, gemm = strcmp(part, "gemm") == 0,
         formats = all || gemm || strcmp(part, "formats") == 0;
    static const weight_type types[] = {WT_Q4_0, WT_Q4_1, WT_Q4_K, WT_Q5_0, WT_Q5_K,
                                        WT_Q6_K, WT_Q8_0, WT_F16,  WT_F32};
    static const shape shapes[] = {
        {"SmolLM2-135M Q4_1", 576, 1536, 9, 3, 64, 30, 49152, WT_Q4_1, WT_Q8_0},
        {"Qwen2.5-0.5B Q4_0", 896, 4864, 14, 2, 64, 24, 151936, WT_Q4_0, WT_Q4_0},
        {"Qwen2.5-0.5B Q8_0", 896, 4864, 14, 2, 64, 24, 151936, WT_Q8_0, WT_Q8_0}};
    limit = (limits){0};
    for (int i = 0; i < 32; i++)
        limits_sample(o, &limit);
    if (formats && !gemm)
        printf("4864 x 1024; one row: GB/s and us; then GOPS at 1 2 4 6 8 12 16 32 128 512 rows, "
               "the last as a part of the integer peak\n");
    for (size_t i = 0; formats && i < sizeof types / sizeof types[0]; i++)
        bench_format(o, types[i], 4864, 1024, !gemm);
    for (size_t i = 0; (all || strcmp(part, "steps") == 0) && i < sizeof shapes / sizeof shapes[0];
         i++)
        bench_model(o, &shapes[i]);
    if (all || strcmp(part, "attention") == 0)
        bench_attention(o);
    printf("%s limits: %.0f GOPS of 8-bit integers, memory read %.1f GB/s\n", o->name,
           limit.int8_gops, limit.read_gbs);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"avx512", "avx2"};
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    const char *part = argc > 2 ? argv[2] : "";
    if (threads != 1)
        time_source = CLOCK_MONOTONIC;
    printf("%d threads, times are %s\n", threads,
           threads == 1 ? "of the processor" : "of the wall clock");
    for (size_t b = 0; b < 2; b++) {
        ops *o = NULL;
        err e = {0};
        if (ops_open(names[b], threads, &o, &e)) {
            printf("skip: %s\n", e.message);
            continue;
        }
        bench_backend(o, part);
        o->close(o);
    }
    return 0;
}
