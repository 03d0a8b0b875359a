// Pages of the KV cache: one mapping for all layers, a reference count per page, and two lists of
// pages that no table uses. `free` is a stack; a page enters when its last table drops it. `idle`
// is a queue of published pages: one enters as the newest when its last table drops it, and leaves
// when a table shares it again or, from the oldest on, in take_page once `free` is empty. A taken
// page is zeroed, so that nothing of one sequence is ever readable by another. Owned by the
// engine's thread. Does not know which tokens a page holds: keys come from prefix.c.
#include "engine/kv.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct kv_pool {
    kv_shape shape;
    kv_layer *layers;
    char *memory;
    size_t memory_bytes;
    int32_t *free; // stack of page numbers
    int n_free, n_pages;
    int32_t *refs;          // [n_pages]
    kv_index *index;        // of published pages
    int32_t *older, *newer; // [n_pages]: neighbours of an idle page, NONE at the ends
    int32_t oldest, newest; // idle pages, NONE: there is none
    int n_idle;
    kv_stats stats;
};

enum { NONE = -1 };

// One page of one layer, K or V alone.
static size_t plane_bytes(const kv_shape *s) {
    return (size_t)s->n_kv_heads * kv_plane_bytes(s->type, KV_PAGE_TOKENS, s->head_dim);
}

size_t kv_page_bytes(const kv_shape *s) { return plane_bytes(s) * 2 * (size_t)s->n_layers; }

int kv_pages_for(int n_tokens) {
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS > 0);
}

static void place_layers(kv_pool *p) {
    size_t plane = plane_bytes(&p->shape) * (size_t)p->n_pages;
    for (int i = 0; i < p->shape.n_layers; i++)
        p->layers[i] = (kv_layer){.k = p->memory + plane * 2 * (size_t)i,
                                  .v = p->memory + plane * (2 * (size_t)i + 1),
                                  .type = p->shape.type,
                                  .n_pages = p->n_pages,
                                  .n_kv_heads = p->shape.n_kv_heads,
                                  .page_tokens = KV_PAGE_TOKENS,
                                  .head_dim = p->shape.head_dim};
}

int kv_pool_open(const kv_shape *s, size_t bytes, kv_pool **out, err *e) {
    size_t n = bytes / kv_page_bytes(s);
    if (n < 1 || n > INT32_MAX / KV_PAGE_TOKENS)
        return err_set(e, ERR_INVALID, "kv_bytes", "%zu bytes of KV cache are %zu pages", bytes, n);
    kv_pool *p = calloc(1, sizeof *p);
    if (!p)
        fatal("out of memory");
    p->shape = *s;
    p->n_pages = (int)n;
    p->memory_bytes = n * kv_page_bytes(s);
    p->memory =
        mmap(NULL, p->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p->layers = calloc((size_t)s->n_layers, sizeof *p->layers);
    p->free = calloc(n, sizeof *p->free);
    p->refs = calloc(n, sizeof *p->refs);
    p->older = calloc(n, sizeof *p->older);
    p->newer = calloc(n, sizeof *p->newer);
    if (p->memory == MAP_FAILED || !p->layers || !p->free || !p->refs || !p->older || !p->newer) {
        if (p->memory == MAP_FAILED)
            p->memory = NULL;
        kv_pool_close(p);
        return err_set(e, ERR_INVALID, "kv_bytes", "no memory for %zu bytes of KV cache", bytes);
    }
    place_layers(p);
    p->index = kv_index_new(p->n_pages);
    p->oldest = p->newest = NONE;
    for (int i = 0; i < p->n_pages; i++) // page 0 is taken first
        p->free[p->n_free++] = p->n_pages - 1 - i;
    *out = p;
    return 0;
}

void kv_pool_close(kv_pool *p) {
    if (!p)
        return;
    if (p->memory)
        munmap(p->memory, p->memory_bytes);
    free(p->layers);
    free(p->free);
    free(p->refs);
    free(p->older);
    free(p->newer);
    kv_index_free(p->index);
    free(p);
}

const kv_layer *kv_pool_layer(const kv_pool *p, int layer) { return &p->layers[layer]; }
int kv_pool_n_pages(const kv_pool *p) { return p->n_pages; }
int kv_pool_n_free(const kv_pool *p) { return p->n_free + p->n_idle; }
int kv_page_refs(const kv_pool *p, int32_t page) { return p->refs[page]; }

int32_t kv_pool_find(const kv_pool *p, const kv_key *key) { return kv_index_find(p->index, key); }

kv_stats kv_pool_stats(const kv_pool *p) {
    kv_stats s = p->stats;
    s.published = kv_index_count(p->index);
    return s;
}

void kv_pool_count_lookup(kv_pool *p, int hits, int misses) {
    p->stats.hits += hits;
    p->stats.misses += misses;
}

// ---- pages

static char *plane_at(const kv_pool *p, void *base, int32_t page) {
    return (char *)base + plane_bytes(&p->shape) * (size_t)page;
}

static void idle_add(kv_pool *p, int32_t page) {
    p->older[page] = p->newest;
    p->newer[page] = NONE;
    *(p->newest == NONE ? &p->oldest : &p->newer[p->newest]) = page;
    p->newest = page;
    p->n_idle++;
}

static void idle_remove(kv_pool *p, int32_t page) {
    int32_t older = p->older[page], newer = p->newer[page];
    *(older == NONE ? &p->oldest : &p->newer[older]) = newer;
    *(newer == NONE ? &p->newest : &p->older[newer]) = older;
    p->n_idle--;
}

static int32_t evict(kv_pool *p) {
    int32_t page = p->oldest;
    idle_remove(p, page);
    kv_index_remove(p->index, page);
    p->stats.evicted++;
    return page;
}

// One is free: the caller made sure by kv_pool_want.
static int32_t take_page(kv_pool *p) {
    int32_t page = p->n_free > 0 ? p->free[--p->n_free] : evict(p);
    p->refs[page] = 1;
    for (int i = 0; i < p->shape.n_layers; i++) {
        memset(plane_at(p, p->layers[i].k, page), 0, plane_bytes(&p->shape));
        memset(plane_at(p, p->layers[i].v, page), 0, plane_bytes(&p->shape));
    }
    return page;
}

static void drop_page(kv_pool *p, int32_t page) {
    if (--p->refs[page] > 0)
        return;
    if (kv_index_has(p->index, page))
        idle_add(p, page);
    else
        p->free[p->n_free++] = page;
}

static void share_page(kv_pool *p, int32_t page) {
    if (p->refs[page]++ == 0)
        idle_remove(p, page);
}

static void copy_page(kv_pool *p, int32_t from, int32_t to) {
    size_t n = plane_bytes(&p->shape);
    for (int i = 0; i < p->shape.n_layers; i++) {
        const kv_layer *l = &p->layers[i];
        memcpy(plane_at(p, l->k, to), plane_at(p, l->k, from), n);
        memcpy(plane_at(p, l->v, to), plane_at(p, l->v, from), n);
    }
}

// ---- tables

void kv_table_init(kv_table *t, int max_tokens) {
    *t = (kv_table){.cap = kv_pages_for(max_tokens)};
    t->pages = calloc((size_t)t->cap, sizeof *t->pages);
    if (!t->pages)
        fatal("out of memory");
}

void kv_table_release(kv_table *t) {
    free(t->pages);
    *t = (kv_table){0};
}

int kv_pool_want(const kv_pool *p, int n, err *e) {
    if (n > kv_pool_n_free(p))
        return err_set(e, ERR_OVERLOADED, NULL, "the KV cache is full: %d pages wanted, %d free", n,
                       kv_pool_n_free(p));
    return 0;
}

int kv_table_grow(kv_pool *p, kv_table *t, int n_tokens, err *e) {
    int n = kv_pages_for(n_tokens);
    if (n > t->cap)
        return err_set(e, ERR_CONTEXT_LENGTH, NULL, "%d tokens exceed the sequence's %d pages",
                       n_tokens, t->cap);
    if (kv_pool_want(p, n - t->n, e))
        return -1;
    while (t->n < n)
        t->pages[t->n++] = take_page(p);
    return 0;
}

// From the end on, so that of one prefix the longer is idle longer and is given up first.
void kv_table_shrink(kv_pool *p, kv_table *t, int n_tokens) {
    int n = kv_pages_for(n_tokens);
    while (t->n > n)
        drop_page(p, t->pages[--t->n]);
}

int kv_table_fork(kv_pool *p, const kv_table *from, int n_tokens, kv_table *to, err *e) {
    int n_full = n_tokens / KV_PAGE_TOKENS, n = kv_pages_for(n_tokens);
    if (n > to->cap)
        return err_set(e, ERR_CONTEXT_LENGTH, NULL, "%d tokens exceed the sequence's %d pages",
                       n_tokens, to->cap);
    if (kv_pool_want(p, n - n_full, e))
        return -1;
    for (int i = 0; i < n_full; i++) {
        to->pages[i] = from->pages[i];
        share_page(p, to->pages[i]);
    }
    if (n > n_full) {
        to->pages[n_full] = take_page(p);
        copy_page(p, from->pages[n_full], to->pages[n_full]);
    }
    to->n = n;
    return 0;
}

void kv_table_share(kv_pool *p, kv_table *t, int32_t page) {
    share_page(p, page);
    t->pages[t->n++] = page;
}

void kv_table_publish(kv_pool *p, kv_table *t, int i, const kv_key *key) {
    int32_t own = t->pages[i], known = kv_index_find(p->index, key);
    if (known < 0) {
        kv_index_put(p->index, key, own);
    } else if (known != own) {
        share_page(p, known);
        t->pages[i] = known;
        drop_page(p, own);
    }
}
