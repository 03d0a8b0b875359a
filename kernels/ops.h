// The tensor operations every backend provides: ref/ (double precision), cpu/ (AVX2, AVX-512,
// chosen at run time), cuda/. Twins with the same argument structs. engine/graph is their only
// caller. Activations are float32, row-major, rows contiguous unless a stride is named. A row's
// result never depends on the other rows of the call (batch-invariant) nor on the number of
// threads.
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

// Source formats of weights, numbered as in GGUF (ggml_type).
typedef enum weight_type {
    WT_F32 = 0,
    WT_F16 = 1,
    WT_Q4_0 = 2,
    WT_Q4_1 = 3,
    WT_Q5_0 = 6,
    WT_Q5_1 = 7,
    WT_Q8_0 = 8,
    WT_Q4_K = 12,
    WT_Q5_K = 13,
    WT_Q6_K = 14,
    WT_BF16 = 30,
    // Ours, not ggml's: what AWQ and GPTQ store, row by row. Blocks of 32 values: fp16 scale, u8
    // zero, u8 0, 16 bytes of nibbles as Q4_0's. value = scale * (code - zero), exactly.
    WT_INT4 = 60,
} weight_type;

// Values and bytes of one block; false for a type that no backend takes.
bool weight_type_block(weight_type t, int *n_values, int *n_bytes);
const char *weight_type_name(weight_type t); // "?" when unknown
// Dequantises n values (a multiple of the block) of a row to float, exactly as the format defines
// them.
void weight_dequantize(weight_type t, const void *row, float *out, int64_t n);

// Bytes that the CPU backends keep for a matrix of that type, but for a few a row.
uint64_t weight_packed_bytes(weight_type t, int64_t n_out, int64_t n_in);

// A matrix as the model file holds it: n_out rows of n_in values. Borrowed during weight_pack only.
typedef struct weight_source {
    const char *name; // for errors
    weight_type type;
    const void *data; // any alignment
    int64_t n_out, n_in;
    // [n_in], a permutation: value k of every row multiplies x[order[k]]. NULL: in order. Of
    // WT_INT4 only; parts of one stack have the same.
    const int32_t *order;
} weight_source;

typedef struct weight weight; // packed by a backend; opaque
typedef enum kv_type { KV_F32, KV_F16, KV_BF16, KV_Q8, KV_TYPES } kv_type;
const char *kv_type_name(kv_type t);               // "f32", "f16", "bf16", "q8"
bool kv_type_find(const char *name, kv_type *out); // false: none has that name
// Bytes of the keys, or of the values, of so many positions in one KV head of a page.
size_t kv_plane_bytes(kv_type t, int page_tokens, int head_dim);

// Paged KV of one layer, owned by the engine, which copies whole pages and never looks inside: v is
// [n_pages][n_kv_heads][page_tokens][head_dim] of type, k is
// [n_pages][n_kv_heads][head_dim][page_tokens] (keys stand as columns, so that sixteen of them are
// one load). page_tokens is a multiple of 16, head_dim of 8.
// KV_Q8 are signed bytes, and behind a head's bytes in a page stand bf16 scale[page_tokens]: the
// key (or value) of a position is byte * scale, with scale = bf16(largest |x| / 127) and byte =
// x * (1 / scale) rounded to nearest even, in float32; a scale up to 1e-30 has bytes of 0. Where
// any x is not finite, the scale is NaN. So |byte * scale - x| <= largest |x| / 253.
typedef struct kv_layer {
    void *k, *v;
    kv_type type;
    int n_pages, n_kv_heads, page_tokens, head_dim;
} kv_layer;

// One sequence's share of a ragged batch: its rows are row..row+n_rows-1, at positions
// first..first+n_rows-1. After kv_write the cache holds first + n_rows positions; pages[i] holds
// positions i*page_tokens...
typedef struct seq_span {
    int row, n_rows, first;
    const int32_t *pages;
    int n_pages;
} seq_span;

typedef struct embed_args { // y[n_rows, dim] = table[ids[r]] * scale
    const weight *table;    // dequantised per row
    const int32_t *ids;     // each < n_out of the table (the caller checked)
    float *y;
    int n_rows;
    float scale;
} embed_args;

typedef struct rmsnorm_args { // x += add (when not NULL), y = x / sqrt(mean(x^2) + eps) * gain; y
                              // may be x only if add is NULL
    float *x;                 // [n_rows, dim], updated when add is given: the residual stream
    const float *add;         // [n_rows, dim] or NULL
    const float *gain;        // [dim]
    float *y;                 // [n_rows, dim]
    int n_rows, dim;
    float eps;
} rmsnorm_args;

typedef struct matmul_args { // y[r, :n_out] = w x[r] + bias
    const weight *w;
    const float *x;    // [n_rows, n_in], rows x_stride floats apart
    float *y;          // rows y_stride floats apart; must not overlap x
    const float *bias; // [n_out] or NULL
    int n_rows;
    int64_t x_stride, y_stride;
} matmul_args;

// Rotates q and k in place (RoPE, Su et al. 2021), after an optional per-head RMSNorm (Qwen3), and
// writes k and v to the cache.
typedef struct rope_kv_args {
    float *qkv; // [n_rows, (n_heads + 2 n_kv_heads) * head_dim]: q heads, k heads, v heads
    int64_t stride;
    int n_heads;
    bool interleaved; // true: pairs (2i, 2i+1) as GGUF llama; false: pairs (i, i + head_dim/2) as
                      // Qwen (NEOX)
    const float *inv_freq;        // [head_dim / 2] per pair, scaling (YaRN, llama3) already applied
    float attn_scale;             // multiplies sine and cosine (YaRN); 1 otherwise
    const float *q_gain, *k_gain; // [head_dim] or NULL
    float eps;
    const kv_layer *kv;
    const seq_span *spans;
    int n_spans;
} rope_kv_args;

// Causal attention with grouped queries (n_heads / n_kv_heads at most 32), float accumulation,
// scale 1/sqrt(head_dim).
typedef struct attention_args {
    const float *q; // [n_rows, n_heads, head_dim], rows q_stride floats apart (the q part of qkv)
    float *y;       // [n_rows, n_heads * head_dim]
    int64_t q_stride;
    int n_heads;
    const kv_layer *kv;
    const seq_span *spans;
    int n_spans;
} attention_args;

typedef struct swiglu_args { // y[r, i] = silu(gate_up[r, i]) * gate_up[r, width + i]
    const float *gate_up;    // [n_rows, 2 width]
    float *y;                // [n_rows, width]
    int n_rows, width;
} swiglu_args;

// A backend instance with its threads. One engine thread calls it at a time; calls return when the
// work is done.
typedef struct ops {
    const char *name; // "ref", "avx2", "avx512"
    kv_type kv;       // what attention prefers: ops_kv_type
    // Packs one matrix or several stacked on top of each other (fused qkv, gate-up: n sources of
    // the same n_in, any mix of types). ERR_UNSUPPORTED names the tensor. weight_free frees.
    int (*weight_pack)(struct ops *o, const weight_source *parts, int n, weight **out, err *e);
    // The same in the calling thread alone, which may be any, beside whatever else runs.
    int (*weight_pack_alone)(struct ops *o, const weight_source *parts, int n, weight **out,
                             err *e);
    void (*weight_free)(struct ops *o, weight *w);
    size_t (*weight_bytes)(const weight *w);
    void (*embed)(struct ops *o, const embed_args *a);
    void (*rmsnorm)(struct ops *o, const rmsnorm_args *a);
    void (*matmul)(struct ops *o, const matmul_args *a);
    void (*rope_kv)(struct ops *o, const rope_kv_args *a);
    void (*attention)(struct ops *o, const attention_args *a);
    void (*swiglu)(struct ops *o, const swiglu_args *a);
    // Runs fn(ctx, part, n_parts) on all threads of the backend and waits (sampling spreads over
    // them).
    void (*parallel)(struct ops *o, void (*fn)(void *ctx, int part, int n_parts), void *ctx);
    void (*close)(struct ops *o);
} ops;

// name: "ref", "avx2", "avx512", or NULL / "": TIERGATE_CPU when set, else the best this processor
// has. n_threads 0: all cores. ERR_UNSUPPORTED when the processor lacks it.
int ops_open(const char *name, int n_threads, ops **out, err *e);
// Keeps every thread of the backend but the caller's on a processor of its own, of those that this
// process may use; the first of these is left to the caller, which stays free because threads that
// it starts would inherit its place. ERR_INVALID: there are fewer processors than threads.
int ops_pin(ops *o, err *e);
bool ops_supported(const char *name);
kv_type ops_kv_type(const ops *o); // what the backend's attention prefers

#endif
