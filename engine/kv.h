// The paged KV cache: pages of KV_PAGE_TOKENS positions, the same page number in every layer,
// counted by reference so that sequences may share full pages. A page that was published under a
// key keeps its content after its last table dropped it, until its memory is wanted: the one that
// was dropped first goes first. Owned by the engine's thread.
#ifndef ENGINE_KV_H
#define ENGINE_KV_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "engine/kv_index.h"
#include "kernels/ops.h"

#define KV_PAGE_TOKENS 16

typedef struct kv_pool kv_pool;

typedef struct kv_table { // one sequence's pages: pages[i] holds positions i * KV_PAGE_TOKENS...
    int32_t *pages;
    int n, cap;
} kv_table;

typedef struct kv_shape {
    kv_type type;
    int n_layers, n_kv_heads, head_dim;
} kv_shape;

typedef struct kv_stats { // pages
    int64_t hits, misses; // of those looked up by prefix
    int64_t evicted;      // published ones whose memory was taken
    int published;        // now, used or not
} kv_stats;

size_t kv_page_bytes(const kv_shape *s); // of one page in all layers, K and V
// As many pages as fit into `bytes`. ERR_INVALID when that is none or too many to number.
int kv_pool_open(const kv_shape *s, size_t bytes, kv_pool **out, err *e);
void kv_pool_close(kv_pool *p);
const kv_layer *kv_pool_layer(const kv_pool *p, int layer);
int kv_pool_n_pages(const kv_pool *p);
int kv_pool_n_free(const kv_pool *p); // that no table uses, published or not
int kv_page_refs(const kv_pool *p, int32_t page);
int32_t kv_pool_find(const kv_pool *p, const kv_key *key); // the published page; -1: none
kv_stats kv_pool_stats(const kv_pool *p);
void kv_pool_count_lookup(kv_pool *p, int hits, int misses);
// ERR_OVERLOADED when fewer than n pages are free.
int kv_pool_want(const kv_pool *p, int n, err *e);

int kv_pages_for(int n_tokens); // pages that hold so many positions

void kv_table_init(kv_table *t, int max_tokens); // caller's storage, no page yet
void kv_table_release(kv_table *t);              // frees the storage; its pages were dropped before
// Makes the table hold n_tokens positions with zeroed pages of its own. ERR_OVERLOADED when too few
// are free: then nothing has changed.
int kv_table_grow(kv_pool *p, kv_table *t, int n_tokens, err *e);
// Keeps the pages of the first n_tokens positions and gives the others back.
void kv_table_shrink(kv_pool *p, kv_table *t, int n_tokens);
// to (empty) holds the first n_tokens positions of from: full pages are shared, the last, partly
// filled one is copied. ERR_OVERLOADED: nothing has changed.
int kv_table_fork(kv_pool *p, const kv_table *from, int n_tokens, kv_table *to, err *e);
// Appends a published page to a table that holds whole pages only.
void kv_table_share(kv_pool *p, kv_table *t, int32_t page);
// Page i of the table is full and will not be written again: others may find it by its key. If a
// page is known by that key already, it replaces the table's own (the content is the same).
void kv_table_publish(kv_pool *p, kv_table *t, int i, const kv_key *key);

#endif
