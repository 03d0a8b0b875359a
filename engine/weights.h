// The weights of a model as the backend wants them: projections that read the same input fused into
// one matrix, norms and biases as float. Made once at engine_open, read-only after. Supported:
// llama, qwen2 (bias on q, k, v), qwen3 (norm on the heads of q and k), each dense.
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H
#include <stddef.h>
#include "base/err.h"
#include "kernels/ops.h"
#include "model/model.h"

typedef struct layer_weights {
    weight *qkv, *attn_out, *gate_up, *down;
    float *attn_norm, *ffn_norm;
    float *qkv_bias;        // [(n_heads + 2 n_kv_heads) * head_dim] or NULL
    float *q_norm, *k_norm; // [head_dim] or NULL
} layer_weights;

typedef struct weights {
    ops *o;
    weight *embedding, *head; // the same one when the head is tied
    float *output_norm;
    layer_weights *layers;
    int n_layers;
    size_t bytes; // what the backend and the floats take
} weights;

// Packs every tensor of m. ERR_UNSUPPORTED or ERR_FORMAT names the tensor. progress may be NULL.
int weights_load(const model *m, ops *o, void (*progress)(void *ctx, double fraction), void *ctx,
                 weights **out, err *e);
void weights_free(weights *w);

#endif
