// The codes behind a quantised row, for backends that repack them: value = scale * code + min, in
// groups of 32.
#ifndef KERNELS_DEQUANT_H
#define KERNELS_DEQUANT_H
#include "kernels/ops.h"

typedef struct quant_group {
    int8_t code[32];
    float scale[2]; // of values 0..15 and 16..31; they differ in Q6_K alone
    float min;      // 0 in formats without one
    int zero;       // WT_INT4: min is -zero * scale
} quant_group;

// Reads group g (values 32 g ... 32 g + 31) of a row of a quantised type. The row may have any
// alignment.
void quant_group_read(weight_type t, const void *row, int64_t g, quant_group *out);
// A bound on |scale| and |min| in a row of n values of a K format (within a factor of 128 of the
// largest).
float quant_row_bound(weight_type t, const void *row, int64_t n);
// 0 when a backend can take s as part of a matrix n_in wide; else ERR_UNSUPPORTED naming the
// tensor.
int weight_source_check(const weight_source *s, int64_t n_in, err *e);

#endif
