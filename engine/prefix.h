// What lets sequences share the KV of equal beginnings: a chain of keys, one per full page,
// key[i] = SHA-256(salt, key[i-1], the page's token ids), key[-1] = 0. So a key stands for all
// tokens up to its page's end, and for whoever may share them: other salts never meet. A page is
// in the pool's index from the moment it is full, and is never written again.
#ifndef ENGINE_PREFIX_H
#define ENGINE_PREFIX_H
#include <stdbool.h>
#include <stdint.h>
#include "engine/kv.h"

#define PREFIX_SALT_BYTES 32

typedef struct prefix { // of one sequence; plain data: a fork's is a copy
    bool shares;        // false: nothing is looked up or made known
    uint8_t salt[PREFIX_SALT_BYTES];
    kv_key last;                  // of the last full page
    int32_t tail[KV_PAGE_TOKENS]; // ids behind it
    int n_tail;
} prefix;

void prefix_init(prefix *x, const uint8_t *salt); // NULL: shares nothing
// Appends to the empty table the known pages that hold the beginning of ids, and returns how many
// positions those are: whole pages, and always fewer than n.
int prefix_attach(prefix *x, kv_pool *p, kv_table *t, const int32_t *ids, int n);
// The table's positions [first, first + n) now hold ids for good: pages that became full are made
// known. A page that another sequence made known before takes the place of the table's own.
void prefix_append(prefix *x, kv_pool *p, kv_table *t, int first, const int32_t *ids, int n);
// Positions of ids that prefix_attach would find in pages some sequence uses now: sharing these
// takes no page from those that are free.
int prefix_in_use(const uint8_t *salt, const kv_pool *p, const int32_t *ids, int n);

#endif
