// Writes tokens with their log-probabilities as JSON. Pure; the lists belong to one answer. A
// control token shows its name; it takes no place in the text, so it moves no offset.
#include "server/openai_logprob.h"
#include "server/openai_text.h"
#include <math.h>
#include <string.h>

#define LEAST -9999.0f // what OpenAI writes for a probability of nothing

static void put_value(buf *out, float logprob) {
    if (isnan(logprob))
        buf_puts(out, "null");
    else
        buf_printf(out, "%.9g", (double)(logprob < LEAST ? LEAST : logprob));
}

static void put_comma(buf *out) {
    if (out->len)
        buf_puts(out, ",");
}

// ---- chat

static void put_chat_entry(buf *out, const tokenizer *t, int32_t id, float logprob) {
    size_t n;
    const char *piece = tokenizer_piece(t, id, true, &n);
    buf_puts(out, "{\"token\":");
    text_put_json(out, piece, n);
    buf_puts(out, ",\"logprob\":");
    put_value(out, logprob);
    buf_puts(out, ",\"bytes\":");
    text_put_byte_array(out, piece, n);
}

void logprob_put_chat(const tokenizer *t, const reply_token *token, buf *out) {
    put_comma(out);
    put_chat_entry(out, t, token->id, token->logprob);
    buf_puts(out, ",\"top_logprobs\":[");
    for (int i = 0; i < token->n_top; i++) {
        if (i)
            buf_puts(out, ",");
        put_chat_entry(out, t, token->top[i].id, token->top[i].logprob);
        buf_puts(out, "}");
    }
    buf_puts(out, "]}");
}

// ---- legacy completions

// A token that is no whole text is spelt "bytes:\xe2\x82", as OpenAI does.
static void put_token_text(buf *out, const tokenizer *t, int32_t id) {
    size_t n;
    const char *piece = tokenizer_piece(t, id, true, &n);
    if (text_is_utf8(piece, n)) {
        buf_put_json(out, piece, n);
        return;
    }
    buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        buf_printf(out, "\\\\x%02x", (unsigned char)piece[i]);
    buf_puts(out, "\"");
}

static bool has_entry(const buf *map, size_t from, const char *name, size_t n) {
    return memmem(map->data + from, map->len - from, name, n) != NULL;
}

// "token": logprob, unless another id with the same text stands there.
static void put_map_entry(buf *map, size_t from, const tokenizer *t, int32_t id, float logprob) {
    buf name = {0};
    put_token_text(&name, t, id);
    buf_puts(&name, ":");
    if (!has_entry(map, from, name.data, name.len)) {
        if (map->len > from + 1)
            buf_puts(map, ",");
        buf_put(map, name.data, name.len);
        put_value(map, logprob);
    }
    buf_release(&name);
}

static void put_map(buf *out, const tokenizer *t, const reply_token *token) {
    if (isnan(token->logprob)) {
        buf_puts(out, "null");
        return;
    }
    size_t from = out->len;
    buf_puts(out, "{");
    for (int i = 0; i < token->n_top; i++)
        put_map_entry(out, from, t, token->top[i].id, token->top[i].logprob);
    put_map_entry(out, from, t, token->id, token->logprob);
    buf_puts(out, "}");
}

void logprob_lists_put(logprob_lists *l, const tokenizer *t, const reply_token *token) {
    size_t n;
    const char *piece = tokenizer_piece(t, token->id, false, &n);
    buf *const parts[] = {&l->tokens, &l->values, &l->tops, &l->offsets};
    for (size_t i = 0; l->n && i < sizeof parts / sizeof *parts; i++)
        buf_puts(parts[i], ",");
    put_token_text(&l->tokens, t, token->id);
    put_value(&l->values, token->logprob);
    put_map(&l->tops, t, token);
    buf_printf(&l->offsets, "%zu", l->n_characters);
    l->n_characters += text_count_characters(piece, n);
    l->n++;
}

static void write_list(buf *out, const char *name, const buf *a, const buf *b) {
    buf_puts(out, name);
    buf_puts(out, "[");
    if (a && a->len)
        buf_put(out, a->data, a->len);
    if (a && a->len && b && b->len)
        buf_puts(out, ",");
    if (b && b->len)
        buf_put(out, b->data, b->len);
    buf_puts(out, "]");
}

void logprob_lists_write(const logprob_lists *a, const logprob_lists *b, buf *out) {
    static const logprob_lists none;
    a = a ? a : &none;
    b = b ? b : &none;
    write_list(out, "{\"tokens\":", &a->tokens, &b->tokens);
    write_list(out, ",\"token_logprobs\":", &a->values, &b->values);
    write_list(out, ",\"top_logprobs\":", &a->tops, &b->tops);
    write_list(out, ",\"text_offset\":", &a->offsets, &b->offsets);
    buf_puts(out, "}");
}

void logprob_lists_clear(logprob_lists *l) {
    buf_clear(&l->tokens);
    buf_clear(&l->values);
    buf_clear(&l->tops);
    buf_clear(&l->offsets);
    l->n = 0;
}

void logprob_lists_release(logprob_lists *l) {
    buf_release(&l->tokens);
    buf_release(&l->values);
    buf_release(&l->tops);
    buf_release(&l->offsets);
}
