// Writes the vocabulary keys of a GGUF file from lists, whatever they say; for fuzz targets.
#ifndef TESTS_FUZZ_TINY_VOCABULARY_H
#define TESTS_FUZZ_TINY_VOCABULARY_H
#include <string.h>
#include "base/buf.h"

typedef struct tiny_vocabulary {
    buf tokens, types, merges; // array elements as in the file
    uint64_t n_tokens, n_merges;
} tiny_vocabulary;

static void tiny_put(buf *b, const void *p, size_t n) {
    buf_put_u64(b, n);
    buf_put(b, p, n);
}

static void tiny_token(tiny_vocabulary *v, const void *name, size_t n, uint32_t type) {
    tiny_put(&v->tokens, name, n);
    buf_put_u32(&v->types, type);
    v->n_tokens++;
}

// The 256 bytes by id, in GPT-2's alphabet.
static void tiny_bytes(tiny_vocabulary *v) {
    for (int b = 0, next = 256; b < 256; b++) {
        int plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        int c = plain ? b : next++;
        char name[2] = {(char)(c < 128 ? c : 0xc0 | (c >> 6)), (char)(0x80 | (c & 0x3f))};
        tiny_token(v, name, c < 128 ? 1 : 2, 1);
    }
}

static void tiny_key(buf *b, const char *key, uint32_t type) {
    tiny_put(b, key, strlen(key));
    buf_put_u32(b, type);
}

static void tiny_array(buf *b, const char *key, uint32_t type, uint64_t n, const buf *elements) {
    tiny_key(b, key, 9);
    buf_put_u32(b, type);
    buf_put_u64(b, n);
    buf_put(b, elements->data, elements->len);
}

static void tiny_string(buf *b, const char *key, const void *p, size_t n) {
    tiny_key(b, key, 8);
    tiny_put(b, p, n);
}

// The whole file; template NULL: without one.
static void tiny_write(const tiny_vocabulary *v, const char *pre, const void *template, size_t n,
                       buf *out) {
    buf_put(out, "GGUF", 4);
    buf_put_u32(out, 3);
    buf_put_u64(out, 0);
    buf_put_u64(out, template ? 7 : 6);
    tiny_string(out, "tokenizer.ggml.model", "gpt2", 4);
    tiny_string(out, "tokenizer.ggml.pre", pre, strlen(pre));
    tiny_key(out, "tokenizer.ggml.add_bos_token", 7);
    buf_put_u8(out, 0);
    tiny_array(out, "tokenizer.ggml.tokens", 8, v->n_tokens, &v->tokens);
    tiny_array(out, "tokenizer.ggml.token_type", 5, v->n_tokens, &v->types);
    tiny_array(out, "tokenizer.ggml.merges", 8, v->n_merges, &v->merges);
    if (template)
        tiny_string(out, "tokenizer.chat_template", template, n);
}

static void tiny_release(tiny_vocabulary *v) {
    buf_release(&v->merges);
    buf_release(&v->types);
    buf_release(&v->tokens);
}

#endif
