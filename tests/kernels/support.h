// What the kernel tests share: random numbers, random weights of every format, backends to test,
// and measures of error. Header only, because a unit test is one program.
#ifndef TESTS_KERNELS_SUPPORT_H
#define TESTS_KERNELS_SUPPORT_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/dequant.h"
#include "kernels/half.h"
#include "kernels/ops.h"

static const weight_type all_types[] = {WT_F32,  WT_F16,  WT_BF16, WT_Q4_0, WT_Q4_1, WT_Q5_0,
                                        WT_Q5_1, WT_Q8_0, WT_Q4_K, WT_Q5_K, WT_Q6_K, WT_INT4};
enum { N_TYPES = sizeof all_types / sizeof all_types[0] };

// The emulated build (tests/kernels/simde_shim.h) has the AVX-512 sources compiled for AVX2 and is
// slow: it takes fewer shapes.
#ifdef KERNELS_EMULATED
static const char *const backends[] = {"avx512"};
enum { N_BACKENDS = 1, ROUNDS = 3 };
#else
static const char *const backends[] = {"avx2", "avx512"};
enum { N_BACKENDS = 2, ROUNDS = 12 };
#endif

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static inline uint32_t random_u32(void) { // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 0x2545f4914f6cdd1du >> 32);
}
static inline int random_int(int from, int to) { // both included
    return from + (int)(random_u32() % (uint32_t)(to - from + 1));
}
static inline float random_float(float range) {
    return ((float)random_u32() / 2147483648.0f - 1) * range;
}
static inline float *random_floats(size_t n, float range) {
    float *p = malloc((n + 1) * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = random_float(range);
    return p;
}

// NULL, with a line that says so, when this machine cannot run it.
static inline ops *open_backend(int i, int n_threads) {
    ops *o = NULL;
    err e = {0};
#ifdef KERNELS_EMULATED
    assert_int_equal(cpu_open(&cpu_isa_avx512, n_threads, &o, &e), 0);
#else
    if (!ops_supported(backends[i])) {
        printf("skip: this processor has no %s\n", backends[i]);
        return NULL;
    }
    assert_int_equal(ops_open(backends[i], n_threads, &o, &e), 0);
#endif
    (void)i;
    return o;
}

static inline ops *open_ref(void) {
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ref_open(1, &o, &e), 0);
    return o;
}

static inline size_t row_bytes(weight_type t, int64_t n) {
    int values = 1, bytes = 0;
    assert_true(weight_type_block(t, &values, &bytes));
    return (size_t)(n / values * bytes);
}

static inline void put_f16(uint8_t *p, float v) {
    uint16_t h = f32_to_f16(v);
    memcpy(p, &h, sizeof h);
}

// Random bits for codes and 6-bit scales, sane numbers for the floats in a block.
static inline void random_block(weight_type t, uint8_t *p, int n_bytes) {
    for (int i = 0; i < n_bytes; i++)
        p[i] = (uint8_t)random_u32();
    float d = random_float(0.02f), m = random_float(0.1f);
    switch (t) {
    case WT_F32: {
        float v = random_float(1);
        memcpy(p, &v, sizeof v);
        break;
    }
    case WT_F16:
        put_f16(p, random_float(1));
        break;
    case WT_BF16: {
        uint16_t h = f32_to_bf16(random_float(1));
        memcpy(p, &h, sizeof h);
        break;
    }
    case WT_Q4_1:
    case WT_Q5_1:
        put_f16(p + 2, m);
        put_f16(p, d);
        break;
    case WT_Q4_K:
    case WT_Q5_K:
        put_f16(p, fabsf(d) / 32);
        put_f16(p + 2, fabsf(m) / 32);
        break;
    case WT_Q6_K:
        put_f16(p + 208, d / 64);
        break;
    default:
        put_f16(p, d);
    }
}

typedef struct matrix {
    weight_source source;
    uint8_t *data;
} matrix;

static inline matrix random_matrix(weight_type t, int64_t n_out, int64_t n_in) {
    int values = 1, bytes = 0;
    assert_true(weight_type_block(t, &values, &bytes));
    size_t size = row_bytes(t, n_in) * (size_t)n_out;
    matrix m = {.data = malloc(size + 1)};
    uint8_t *at = m.data + 1; // files promise no alignment
    for (int64_t i = 0; i < n_out * n_in / values; i++)
        random_block(t, at + i * bytes, bytes);
    m.source = (weight_source){.name = "w", .type = t, .data = at, .n_out = n_out, .n_in = n_in};
    return m;
}

static inline weight *pack(ops *o, const weight_source *parts, int n) {
    weight *w = NULL;
    err e = {0};
    if (o->weight_pack(o, parts, n, &w, &e))
        fail_msg("%s", e.message);
    return w;
}

// |y - ref|^2 / |ref|^2.
static inline double nmse(const float *y, const float *ref, size_t n) {
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)y[i] - ref[i];
        error += isnan(d) ? INFINITY : d * d;
        size += (double)ref[i] * ref[i];
    }
    return size > 0 ? error / size : error;
}
// Largest difference against the root mean square of ref.
static inline double largest_error(const float *y, const float *ref, size_t n) {
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)y[i] - ref[i]);
        error = isnan(d) ? INFINITY : fmax(error, d);
        size += (double)ref[i] * ref[i];
    }
    return error / (sqrt(size / (double)n) + 1e-30);
}

#define assert_within(value, bound)                                                                \
    do {                                                                                           \
        double v_ = (value), b_ = (bound);                                                         \
        if (!(v_ <= b_))                                                                           \
            fail_msg("%s = %g is over %g", #value, v_, b_);                                        \
    } while (0)

#endif
