// The machine's limits, measured on a backend's own threads in the same minutes as what is held
// against them.
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H
#include "kernels/ops.h"

typedef struct limits {
    double int8_gops; // multiplications and additions of 8-bit integers, in registers: vpdpbusd on
                      // "avx512", vpmaddubsw + vpaddw on "avx2"
    double float_gflops; // fused multiply-adds in registers
    double read_gbs;     // memory read, in GB/s
} limits;

// Keeps the best of a burst in *l, which starts as zeros; call it between the measurements. The
// first call takes 256 MB that stay.
void limits_sample(ops *o, limits *l);

#endif
