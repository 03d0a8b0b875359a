// A Redis command under construction: words that live in an arena until it is sent. Internal to
// router/. Not thread-safe.
#ifndef ROUTER_COMMAND_H
#define ROUTER_COMMAND_H
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/redis.h"

typedef struct command {
    arena a;
    const char **argv;
    size_t *len;
    int argc, cap;
} command; // zero-initialised is empty

void command_text(command *c, const char *s);            // copied
void command_bytes(command *c, const void *p, size_t n); // borrowed until it is sent
void command_int(command *c, int64_t v);
void command_printf(command *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define COMMAND_PARTS 8
void command_join(command *c, int n, const char *const *parts);  // one word of n texts
void command_hex(command *c, uint64_t v);                        // 16 digits
void command_words(command *c, int n, const char *const *words); // copied
void command_clear(command *c);                                  // ready for the next one
void command_release(command *c);

// Sends and clears.
int command_call(command *c, redis *r, redis_reply_box **out, err *e);
int command_append(command *c, redis *r, err *e);
void command_send(command *c, aredis *r, aredis_fn *fn, void *ctx);

#endif
