#include "tests/bench/limits.h"
#include "kernels/team.h"
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"

enum { LOOPS = 20000, POOL = 256 << 20, SLICE = 8 << 20 };

#define R8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define R12(X) R8(X) X(8) X(9) X(10) X(11)

// 12 independent chains a loop, 128 operations an instruction.
__attribute__((target("avx512f,avx512vnni"))) static double vnni_burst(void) {
    const __m512i one = _mm512_set1_epi8(1);
#define START(i) __m512i s##i = one;
#define STEP(i) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(s##i) : "v"(one));
    R12(START)
    for (int k = 0; k < LOOPS; k++) {
        R12(STEP)
    }
#undef START
#undef STEP
    return 12.0 * 128 * LOOPS;
}

// 8 products into int16 and their sums a loop, 64 operations a pair.
__attribute__((target("avx2"))) static double maddubs_burst(void) {
    const __m256i one = _mm256_set1_epi8(1);
#define START(i) __m256i s##i = one;
#define STEP(i)                                                                                    \
    {                                                                                              \
        __m256i u;                                                                                 \
        __asm__ volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0"                              \
                         : "+x"(s##i), "=&x"(u)                                                    \
                         : "x"(one));                                                              \
    }
    R8(START)
    for (int k = 0; k < LOOPS; k++) {
        R8(STEP)
    }
#undef START
#undef STEP
    return 8.0 * 64 * LOOPS;
}

// 12 independent chains a loop, of 16 floats or 8.
__attribute__((target("avx512f"))) static double fma512_burst(void) {
    const __m512 one = _mm512_set1_ps(1);
#define START(i) __m512 s##i = one;
#define STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(s##i) : "v"(one));
    R12(START)
    for (int k = 0; k < LOOPS; k++) {
        R12(STEP)
    }
#undef START
#undef STEP
    return 12.0 * 32 * LOOPS;
}

__attribute__((target("fma"))) static double fma256_burst(void) {
    const __m256 one = _mm256_set1_ps(1);
#define START(i) __m256 s##i = one;
#define STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(s##i) : "x"(one));
    R12(START)
    for (int k = 0; k < LOOPS; k++) {
        R12(STEP)
    }
#undef START
#undef STEP
    return 12.0 * 16 * LOOPS;
}

typedef struct burst {
    double (*run)(void);
    double operations; // of one thread
    const uint8_t *memory;
    size_t bytes;
} burst;

static void compute(void *ctx, int part, int n_parts) {
    (void)n_parts;
    burst *b = ctx;
    double n = b->run();
    if (part == 0)
        b->operations = n;
}

__attribute__((target("avx2"))) static void read_part(void *ctx, int part, int n_parts) {
    const burst *b = ctx;
    int from, to;
    team_share((int)b->bytes, 256, part, n_parts, &from, &to);
    for (int i = from; i < to; i += 256)
        for (int k = 0; k < 256; k += 64) {
            __m256i x, y;
            __asm__ volatile("vmovdqa %2, %0\n\tvmovdqa %3, %1\n\tprefetcht0 4096(%4)"
                             : "=x"(x), "=x"(y)
                             : "m"(*(const __m256i *)(b->memory + i + k)),
                               "m"(*(const __m256i *)(b->memory + i + k + 32)),
                               "r"(b->memory + i + k));
        }
}

typedef struct count {
    int n;
} count;

static void count_part(void *ctx, int part, int n_parts) {
    if (part == 0)
        ((count *)ctx)->n = n_parts;
}

static double rate(ops *o, void (*fn)(void *, int, int), burst *b, const double *work) {
    int64_t start = clock_mono_us();
    o->parallel(o, fn, b);
    int64_t us = clock_mono_us() - start;
    return *work / (double)(us > 0 ? us : 1) * 1e-3;
}

void limits_sample(ops *o, limits *l) {
    static uint8_t *pool;
    static size_t at;
    if (!pool) {
        if (posix_memalign((void **)&pool, 2 << 20, POOL + 4096))
            return;
        memset(pool, 1, POOL);
    }
    count threads;
    o->parallel(o, count_part, &threads);
    bool wide = strcmp(o->name, "avx512") == 0;
    burst b = {.bytes = SLICE};
    double all = 0, bytes = SLICE;
    for (int i = 0; i < 4; i++) {
        b.run = wide ? vnni_burst : maddubs_burst;
        double gops = rate(o, compute, &b, &b.operations) * threads.n;
        l->int8_gops = gops > l->int8_gops ? gops : l->int8_gops;
        b.run = wide ? fma512_burst : fma256_burst;
        double gflops = rate(o, compute, &b, &b.operations) * threads.n;
        l->float_gflops = gflops > l->float_gflops ? gflops : l->float_gflops;
        b.memory = pool + at;
        at = (at + SLICE) % POOL;
        all = rate(o, read_part, &b, &bytes);
        l->read_gbs = all > l->read_gbs ? all : l->read_gbs;
    }
}
