// The reference backend's own parts: ref.c has the matrices and row operations, ref_attention.c
// positions and the cache.
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H
#include "kernels/ops.h"
#include "kernels/team.h"

typedef struct ref {
    ops ops; // first, so that an ops pointer is a ref pointer
    team *team;
} ref;

// y[dim] = x / sqrt(mean(x^2) + eps) * gain; y may be x.
void ref_norm_row(const float *x, const float *gain, float *y, int dim, double eps);
void ref_rope_kv(ops *o, const rope_kv_args *a);
void ref_attention(ops *o, const attention_args *a);

#endif
