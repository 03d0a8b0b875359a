// Which page holds which content: from a block's key (prefix.h) to the page that stores it. A page
// has at most one key. Memory is taken once for all pages; every call is O(1). Part of the KV pool;
// owned by the engine's thread.
#ifndef ENGINE_KV_INDEX_H
#define ENGINE_KV_INDEX_H
#include <stdbool.h>
#include <stdint.h>

typedef struct kv_key { // SHA-256: equal keys mean equal content
    uint8_t bytes[32];
} kv_key;

typedef struct kv_index kv_index;

kv_index *kv_index_new(int n_pages);
void kv_index_free(kv_index *x);
int32_t kv_index_find(const kv_index *x, const kv_key *key); // -1: no page
bool kv_index_has(const kv_index *x, int32_t page);
void kv_index_put(kv_index *x, const kv_key *key, int32_t page); // neither is there yet
void kv_index_remove(kv_index *x, int32_t page);                 // which is there
int kv_index_count(const kv_index *x);

#endif
