// The row operations and attention of the CPU backend compiled for AVX2, FMA and F16C (x86-64-v3),
// and the table that cpu.c calls. The code itself is in rows_v16.h and attention_v16.h. Reached
// after a CPUID check only; owns nothing; called by every thread of the team.
#include "kernels/cpu/v16_avx2.h"
#include "kernels/cpu/attention_v16.h"
#include "kernels/cpu/isa.h"

const cpu_isa cpu_isa_avx2 = {.name = "avx2",
                              .w8_offset = 0,
                              .quantize_row = quantize_row,
                              .matmul_panel = avx2_matmul_panel,
                              .rmsnorm_row = rmsnorm_row,
                              .swiglu_row = swiglu_row,
                              .rope_row = rope_row,
                              .attend = attend,
                              .attend_merge = attend_merge};
