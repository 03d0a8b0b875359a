// Tiny models with random weights, made from a seed: one for each architecture, RoPE scaling and
// weight format. The oracle reads the same files (tools: build/tests/tiny_models DIR), so nothing
// but its answers is committed.
#ifndef TESTS_SUPPORT_TINY_MODEL_H
#define TESTS_SUPPORT_TINY_MODEL_H
#include <stdbool.h>
#include <stdint.h>
#include "base/buf.h"
#include "kernels/ops.h"
#include "model/model.h"

typedef struct tiny_model {
    const char *name;
    model_arch arch;
    int dim, n_heads, n_kv_heads, head_dim, intermediate;
    weight_type type;        // of the layers' matrices
    weight_type down, embed; // of ffn_down and attn_v; of the embedding and the head
    bool tied;
    rope_scaling scaling; // factor TINY_FACTOR over TINY_ORIGINAL positions
} tiny_model;

#define TINY_LAYERS 2
#define TINY_VOCAB 288
#define TINY_CONTEXT 128
#define TINY_ORIGINAL 32
#define TINY_FACTOR 4

extern const tiny_model tiny_models[];
extern const int n_tiny_models;

const tiny_model *tiny_model_find(const char *name);  // NULL: none
void tiny_model_bytes(const tiny_model *t, buf *out); // appends the GGUF file
int tiny_model_file(const tiny_model *t);             // an open memfd: /proc/self/fd/N

#endif
