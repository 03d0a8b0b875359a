// Bump allocator over a list of malloc blocks, the newest first. Owns its blocks; one thread at a
// time. Does not free or grow single pieces: a piece lives until the arena is cleared or released.
#include "base/arena.h"
#include "base/err.h"
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_MIN 4096u
#define BLOCK_MAX 65536u // growth stops here; a larger piece gets a block of its own size

struct arena_block {
    arena_block *next; // older
    size_t size;
    _Alignas(16) uint8_t data[];
};

void arena_init(arena *a) { *a = (arena){0}; }

static void add_block(arena *a, size_t n) {
    size_t size = a->total < BLOCK_MIN ? BLOCK_MIN : a->total > BLOCK_MAX ? BLOCK_MAX : a->total;
    if (size < n)
        size = n;
    arena_block *b = malloc(sizeof *b + size);
    if (!b)
        fatal("out of memory: an arena wants %zu bytes", size);
    *b = (arena_block){.next = a->head, .size = size};
    a->head = b;
    a->used = 0;
    a->total += size;
}

static void *take(arena *a, size_t n) {
    if (n > SIZE_MAX / 2)
        fatal("an arena was asked for %zu bytes", n);
    n = (n + 15) & ~(size_t)15;
    if (!a->head || a->head->size - a->used < n)
        add_block(a, n);
    void *p = a->head->data + a->used;
    a->used += n;
    return p;
}

void *arena_alloc(arena *a, size_t n) { return memset(take(a, n), 0, n); }

void *arena_dup(arena *a, const void *p, size_t n) {
    void *copy = take(a, n);
    if (n)
        memcpy(copy, p, n);
    return copy;
}

char *arena_strdup(arena *a, const char *s) { return arena_dup(a, s, strlen(s) + 1); }

char *arena_printf(arena *a, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        fatal("arena_printf cannot format \"%s\"", format);
    char *text = arena_alloc(a, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void arena_clear(arena *a) {
    while (a->head && a->head->next) {
        arena_block *older = a->head->next;
        a->total -= a->head->size;
        free(a->head);
        a->head = older;
    }
    a->used = 0;
}

void arena_release(arena *a) {
    arena_clear(a);
    free(a->head);
    arena_init(a);
}
