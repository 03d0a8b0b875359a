// Bump allocator: a request's data lives in one arena and dies with it. Not thread-safe; owned by
// one thread at a time.
#ifndef BASE_ARENA_H
#define BASE_ARENA_H
#include <stddef.h>

typedef struct arena_block arena_block;
typedef struct arena {
    arena_block *head; // newest block
    size_t used;       // bytes taken from head
    size_t total;      // bytes in all blocks
} arena;

void arena_init(arena *a);             // takes no memory yet
void *arena_alloc(arena *a, size_t n); // zeroed, 16-byte aligned, never NULL (fatal on no memory)
void *arena_dup(arena *a, const void *p, size_t n);
char *arena_strdup(arena *a, const char *s);
char *arena_printf(arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
void arena_clear(arena *a); // keeps the first block
void arena_release(arena *a);

#endif
