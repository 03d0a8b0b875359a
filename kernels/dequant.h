// The codes behind a quantised row, for backends that repack them: value = scale * code + min, in
// groups of 32.
#ifndef KERNELS_DEQUANT_H
#define KERNELS_DEQUANT_H
#include "kernels/ops.h"

typedef struct quant_group {
    int8_t code[32];
    float scale[2]; // of values 0..15 and 16..31; they differ in Q6_K alone
    float min;      // 0 in formats without one
} quant_group;

// Reads group g (values 32 g ... 32 g + 31) of a row of a quantised type. The row may have any
// alignment.
void quant_group_read(weight_type t, const void *row, int64_t g, quant_group *out);

#endif
