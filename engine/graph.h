// The one forward graph: Llama-like decoders (llama, qwen2, qwen3) over a ragged batch, written
// once for every backend. Owns the activations; used by the engine's thread.
#ifndef ENGINE_GRAPH_H
#define ENGINE_GRAPH_H
#include <stdint.h>
#include "engine/kv.h"
#include "engine/lora.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/model.h"

typedef struct graph graph;

typedef struct graph_batch {
    const int32_t *ids; // [n_rows]
    int n_rows;
    const seq_span *spans; // cover all rows in order
    int n_spans;
    // The rows whose predictions are wanted, ascending, and the same as spans: a tail of some of
    // `spans`, `row` counted among the kept ones, `first` the position of the tail's first row.
    const int32_t *keep;
    int n_keep;
    const seq_span *tails;
    int n_tails;
    // Rows with an adapter, ascending, and the same counted among the kept ones.
    const lora_span *loras, *kept_loras;
    int n_loras, n_kept_loras;
} graph_batch;

// Borrows all four; takes the memory for max_rows rows, and extra_hidden rows more behind the
// hidden states for the caller's use.
graph *graph_open(const model *m, const weights *w, const kv_pool *kv, ops *o, int max_rows,
                  int extra_hidden);
void graph_close(graph *g);
// Writes the KV of all rows and returns hidden[n_keep, dim], the kept rows after the final norm;
// valid until the next call. The caller may put extra_hidden rows behind them.
float *graph_forward(graph *g, const graph_batch *b);
// logits[n_rows, n_vocab] = head(hidden[n_rows, dim])
void graph_head(graph *g, const float *hidden, int n_rows, float *logits);

#endif
