// The matrix products of each instruction set, for its cpu_isa table: avx2_gemm.c, avx512_gemm.c.
#ifndef KERNELS_CPU_ISA_H
#define KERNELS_CPU_ISA_H
#include "kernels/cpu/cpu.h"

void avx2_matmul_panel(const panel *p, const act *a, const matmul_args *m, int from, int to);
void avx512_matmul_panel(const panel *p, const act *a, const matmul_args *m, int from, int to);

#endif
