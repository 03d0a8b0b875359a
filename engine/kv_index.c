// A chained hash table with one entry per page, the page's number being the entry's. Keys are
// digests under a secret salt: their first bytes are the hash, and nobody can aim at one bucket.
// Owns its arrays; the engine's thread. Does not know who uses a page or when.
#include "engine/kv_index.h"
#include "base/err.h"
#include <stdlib.h>
#include <string.h>

enum { END = -1, ABSENT = -2 };

struct kv_index {
    kv_key *keys;       // [n_pages]
    int32_t *next;      // [n_pages]: the next page of the bucket, END, or ABSENT: no entry
    int32_t *buckets;   // [n_buckets]: a page or END
    uint32_t n_buckets; // a power of two
    int n;
};

kv_index *kv_index_new(int n_pages) {
    kv_index *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory");
    x->n_buckets = 1;
    while (x->n_buckets < (uint32_t)n_pages)
        x->n_buckets *= 2;
    x->keys = calloc((size_t)n_pages, sizeof *x->keys);
    x->next = calloc((size_t)n_pages, sizeof *x->next);
    x->buckets = calloc(x->n_buckets, sizeof *x->buckets);
    if (!x->keys || !x->next || !x->buckets)
        fatal("out of memory");
    for (int i = 0; i < n_pages; i++)
        x->next[i] = ABSENT;
    for (uint32_t i = 0; i < x->n_buckets; i++)
        x->buckets[i] = END;
    return x;
}

void kv_index_free(kv_index *x) {
    if (!x)
        return;
    free(x->keys);
    free(x->next);
    free(x->buckets);
    free(x);
}

static int32_t *bucket_of(const kv_index *x, const kv_key *key) {
    uint32_t hash;
    memcpy(&hash, key->bytes, sizeof hash);
    return &x->buckets[hash & (x->n_buckets - 1)];
}

int32_t kv_index_find(const kv_index *x, const kv_key *key) {
    int32_t page = *bucket_of(x, key);
    while (page != END && memcmp(&x->keys[page], key, sizeof *key) != 0)
        page = x->next[page];
    return page;
}

bool kv_index_has(const kv_index *x, int32_t page) { return x->next[page] != ABSENT; }
int kv_index_count(const kv_index *x) { return x->n; }

void kv_index_put(kv_index *x, const kv_key *key, int32_t page) {
    int32_t *bucket = bucket_of(x, key);
    x->keys[page] = *key;
    x->next[page] = *bucket;
    *bucket = page;
    x->n++;
}

void kv_index_remove(kv_index *x, int32_t page) {
    int32_t *at = bucket_of(x, &x->keys[page]);
    while (*at != page)
        at = &x->next[*at];
    *at = x->next[page];
    x->next[page] = ABSENT;
    x->n--;
}
