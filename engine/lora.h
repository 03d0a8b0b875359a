// Low-rank adapters (LoRA, Hu et al. 2021) beside the base weights: y += alpha / r * B(A x) for the
// rows of the sequences that use one, so that many adapters and base rows share a pass. Files: GGUF
// with general.type "adapter" and tensors blk.N.NAME.weight.lora_a [n_in, r] and lora_b [r, n_out].
// Made and freed by any thread, read-only between; applied by the engine's.
#ifndef ENGINE_LORA_H
#define ENGINE_LORA_H
#include <stddef.h>
#include "base/err.h"
#include "kernels/ops.h"
#include "model/model.h"

#define LORA_MOST_RANK 512

typedef struct lora_part { // adds to columns at .. at + n_out of y
    weight *b;
    int rank, n_out, at;
    float scale;
} lora_part;

typedef struct lora_group { // of matrices that read the same x, as weights.h fuses them
    weight *a;              // their A, stacked; NULL: nothing is adapted here
    int rank;               // of all parts together
    lora_part parts[3];
    int n_parts;
} lora_group;

typedef struct lora_layer {
    lora_group qkv, attn_out, gate_up, down;
} lora_layer;

typedef struct lora {
    ops *o;
    lora_layer *layers;
    int n_layers;
    size_t bytes;
} lora;

typedef struct lora_span { // consecutive rows of a batch that use the same adapter
    int row, n_rows;
    const lora *l;
} lora_span;

typedef struct lora_room { // where a group is computed
    float *low;            // [max_rows, 3 LORA_MOST_RANK]
    float *delta;          // [max_rows, the widest n_out]
} lora_room;

// Packs every tensor of an open adapter file for model m; the file is not needed after.
// ERR_FORMAT or ERR_UNSUPPORTED names the tensor or key that does not fit.
int lora_load(const gguf *file, const model *m, ops *o, lora **out, err *e);
void lora_free(lora *l);
// y[n_rows, columns] += the group's part of x[n_rows, n_in].
void lora_add(const lora_group *g, ops *o, const lora_room *room, const float *x, int64_t x_stride,
              float *y, int64_t y_stride, int n_rows);

#endif
