// Pages of the KV cache: one mapping for all layers, a stack of free page numbers, a reference
// count per page. Owned by the engine's thread. A page enters `free` when its last table drops it
// and leaves in take_page, zeroed, so that nothing of one sequence is ever readable by another.
// Does not know which tokens a page holds (prefix sharing will).
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
    int32_t *refs; // [n_pages]
};

static size_t value_bytes(kv_type t) { return t == KV_F32 ? 4 : 2; }

// One page of one layer, K or V alone.
static size_t plane_bytes(const kv_shape *s) {
    return (size_t)s->n_kv_heads * KV_PAGE_TOKENS * (size_t)s->head_dim * value_bytes(s->type);
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
    if (p->memory == MAP_FAILED || !p->layers || !p->free || !p->refs) {
        if (p->memory == MAP_FAILED)
            p->memory = NULL;
        kv_pool_close(p);
        return err_set(e, ERR_INVALID, "kv_bytes", "no memory for %zu bytes of KV cache", bytes);
    }
    place_layers(p);
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
    free(p);
}

const kv_layer *kv_pool_layer(const kv_pool *p, int layer) { return &p->layers[layer]; }
int kv_pool_n_pages(const kv_pool *p) { return p->n_pages; }
int kv_pool_n_free(const kv_pool *p) { return p->n_free; }
int kv_page_refs(const kv_pool *p, int32_t page) { return p->refs[page]; }

static char *plane_at(const kv_pool *p, void *base, int32_t page) {
    return (char *)base + plane_bytes(&p->shape) * (size_t)page;
}

static int32_t take_page(kv_pool *p) {
    int32_t page = p->free[--p->n_free];
    p->refs[page] = 1;
    for (int i = 0; i < p->shape.n_layers; i++) {
        memset(plane_at(p, p->layers[i].k, page), 0, plane_bytes(&p->shape));
        memset(plane_at(p, p->layers[i].v, page), 0, plane_bytes(&p->shape));
    }
    return page;
}

static void drop_page(kv_pool *p, int32_t page) {
    if (--p->refs[page] == 0)
        p->free[p->n_free++] = page;
}

static void copy_page(kv_pool *p, int32_t from, int32_t to) {
    size_t n = plane_bytes(&p->shape);
    for (int i = 0; i < p->shape.n_layers; i++) {
        const kv_layer *l = &p->layers[i];
        memcpy(plane_at(p, l->k, to), plane_at(p, l->k, from), n);
        memcpy(plane_at(p, l->v, to), plane_at(p, l->v, from), n);
    }
}

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

static int want_pages(const kv_pool *p, int n, err *e) {
    if (n > p->n_free)
        return err_set(e, ERR_OVERLOADED, NULL, "the KV cache is full: %d pages wanted, %d free", n,
                       p->n_free);
    return 0;
}

int kv_table_grow(kv_pool *p, kv_table *t, int n_tokens, err *e) {
    int n = kv_pages_for(n_tokens);
    if (n > t->cap)
        return err_set(e, ERR_CONTEXT_LENGTH, NULL, "%d tokens exceed the sequence's %d pages",
                       n_tokens, t->cap);
    if (want_pages(p, n - t->n, e))
        return -1;
    while (t->n < n)
        t->pages[t->n++] = take_page(p);
    return 0;
}

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
    if (want_pages(p, n - n_full, e))
        return -1;
    for (int i = 0; i < n_full; i++) {
        to->pages[i] = from->pages[i];
        p->refs[to->pages[i]]++;
    }
    if (n > n_full) {
        to->pages[n_full] = take_page(p);
        copy_page(p, from->pages[n_full], to->pages[n_full]);
    }
    to->n = n;
    return 0;
}
