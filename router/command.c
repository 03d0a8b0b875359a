// Words of one Redis command. Owns the arena and the two arrays; whoever builds it owns the struct.
#include "router/command.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(command *c, const char *p, size_t n) {
    if (c->argc == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 32;
        c->argv = realloc(c->argv, (size_t)c->cap * sizeof *c->argv);
        c->len = realloc(c->len, (size_t)c->cap * sizeof *c->len);
        if (!c->argv || !c->len)
            fatal("out of memory for a command to Redis");
    }
    c->argv[c->argc] = p;
    c->len[c->argc++] = n;
}

void command_text(command *c, const char *s) {
    size_t n = strlen(s);
    add(c, arena_dup(&c->a, s, n + 1), n);
}

void command_bytes(command *c, const void *p, size_t n) { add(c, p, n); }

void command_int(command *c, int64_t v) {
    char text[BUF_INT_TEXT];
    size_t n = buf_int_text(v, text);
    add(c, arena_dup(&c->a, text, n + 1), n);
}

void command_printf(command *c, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        fatal("a word of a command to Redis does not fit: \"%s\"", format);
    add(c, arena_dup(&c->a, text, (size_t)n + 1), (size_t)n);
}

void command_join(command *c, int n, const char *const *parts) {
    size_t length[COMMAND_PARTS], total = 0;
    if (n > COMMAND_PARTS)
        fatal("a word of %d parts", n);
    for (int i = 0; i < n; i++)
        total += length[i] = strlen(parts[i]);
    char *word = arena_alloc(&c->a, total + 1), *at = word;
    for (int i = 0; i < n; i++)
        at = mempcpy(at, parts[i], length[i]);
    add(c, word, total);
}

void command_hex(command *c, uint64_t v) {
    char text[17];
    id_hex_u64(v, 16, text);
    command_text(c, text);
}

void command_words(command *c, int n, const char *const *words) {
    for (int i = 0; i < n; i++)
        command_text(c, words[i]);
}

void command_clear(command *c) {
    c->argc = 0;
    arena_clear(&c->a);
}

void command_release(command *c) {
    free(c->argv);
    free(c->len);
    arena_release(&c->a);
    *c = (command){0};
}

int command_call(command *c, redis *r, redis_reply_box **out, err *e) {
    int rc = redis_call(r, c->argc, c->argv, c->len, out, e);
    command_clear(c);
    return rc;
}

int command_append(command *c, redis *r, err *e) {
    int rc = redis_append(r, c->argc, c->argv, c->len, e);
    command_clear(c);
    return rc;
}

void command_send(command *c, aredis *r, aredis_fn *fn, void *ctx) {
    aredis_call(r, fn, ctx, c->argc, c->argv, c->len);
    command_clear(c);
}
