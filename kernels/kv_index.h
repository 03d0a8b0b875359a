// Where a position's key and value stand in the paged cache (kv_layer in ops.h); shared by ref/,
// cpu/ and the tests.
#ifndef KERNELS_KV_INDEX_H
#define KERNELS_KV_INDEX_H
#include "kernels/ops.h"

// Indices count values; those of scales (KV_Q8 alone has them) count 16 bits.
static inline size_t kv_plane(const kv_layer *kv, const seq_span *s, int head, int position) {
    size_t page = (size_t)s->pages[position / kv->page_tokens];
    int scale = kv->type == KV_Q8 ? 2 : 0; // in values, which are bytes
    return (page * (size_t)kv->n_kv_heads + (size_t)head) *
           (size_t)(kv->page_tokens * (kv->head_dim + scale));
}

// Index of dimension 0 of the key; dimension d is d * page_tokens further.
static inline size_t kv_key_index(const kv_layer *kv, const seq_span *s, int head, int position) {
    return kv_plane(kv, s, head, position) + (size_t)(position % kv->page_tokens);
}

// Index of dimension 0 of the value; dimension d is d further.
static inline size_t kv_value_index(const kv_layer *kv, const seq_span *s, int head, int position) {
    return kv_plane(kv, s, head, position) + (size_t)(position % kv->page_tokens * kv->head_dim);
}

// The same for keys and for values.
static inline size_t kv_scale_index(const kv_layer *kv, const seq_span *s, int head, int position) {
    size_t behind = kv_plane(kv, s, head, position) + (size_t)(kv->page_tokens * kv->head_dim);
    return behind / 2 + (size_t)(position % kv->page_tokens);
}

#endif
