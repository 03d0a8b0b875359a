// The chain of keys of a sequence, and finding and publishing its pages. Allocates nothing. The
// engine's thread. Does not count references nor choose what is given up: that is the pool's.
#include "engine/prefix.h"
#include "base/secret.h"
#include <string.h>

// *last becomes the key of the page that follows and holds ids.
static void next_key(const uint8_t *salt, kv_key *last, const int32_t *ids) {
    struct {
        uint8_t salt[PREFIX_SALT_BYTES];
        kv_key last;
        int32_t ids[KV_PAGE_TOKENS];
    } block;
    _Static_assert(sizeof block == 64 + KV_PAGE_TOKENS * sizeof(int32_t), "no padding is hashed");
    memcpy(block.salt, salt, sizeof block.salt);
    block.last = *last;
    memcpy(block.ids, ids, sizeof block.ids);
    secret_sha256(&block, sizeof block, last->bytes);
}

void prefix_init(prefix *x, const uint8_t *salt) {
    *x = (prefix){.shares = salt != NULL};
    if (salt)
        memcpy(x->salt, salt, sizeof x->salt);
}

// The last token is always computed: its row is what the first sample comes from.
static int most_pages(int n) { return n > 0 ? (n - 1) / KV_PAGE_TOKENS : 0; }

int prefix_attach(prefix *x, kv_pool *p, kv_table *t, const int32_t *ids, int n) {
    int most = x->shares ? most_pages(n) : 0, found = 0;
    for (; found < most; found++) {
        kv_key key = x->last;
        next_key(x->salt, &key, ids + found * KV_PAGE_TOKENS);
        int32_t page = kv_pool_find(p, &key);
        if (page < 0)
            break;
        kv_table_share(p, t, page);
        x->last = key;
    }
    kv_pool_count_lookup(p, found, most - found);
    return found * KV_PAGE_TOKENS;
}

void prefix_append(prefix *x, kv_pool *p, kv_table *t, int first, const int32_t *ids, int n) {
    if (!x->shares)
        return;
    for (int i = 0; i < n; i++) {
        x->tail[x->n_tail++] = ids[i];
        if (x->n_tail < KV_PAGE_TOKENS)
            continue;
        next_key(x->salt, &x->last, x->tail);
        kv_table_publish(p, t, (first + i) / KV_PAGE_TOKENS, &x->last);
        x->n_tail = 0;
    }
}

int prefix_in_use(const uint8_t *salt, const kv_pool *p, const int32_t *ids, int n) {
    kv_key key = {0};
    int most = salt ? most_pages(n) : 0, found = 0;
    for (; found < most; found++) {
        next_key(salt, &key, ids + found * KV_PAGE_TOKENS);
        int32_t page = kv_pool_find(p, &key);
        if (page < 0 || kv_page_refs(p, page) == 0) // nor is any page behind it in use
            break;
    }
    return found * KV_PAGE_TOKENS;
}
