// Vocabularies for tests: small ones made in memory, and the real ones that make model-file and
// make vocab-file put into the cache. Owns nothing between calls; one thread.
#include "tests/support/vocabulary.h"
#include "base/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define MAX_GOLDEN_BYTES (64u << 20)

void byte_name(int byte, char *out) {
    int c = byte <= 32                   ? 256 + byte
            : byte >= 127 && byte <= 160 ? 289 + byte - 127
            : byte == 173                ? 323
                                         : byte;
    if (c < 128) {
        *out++ = (char)c;
    } else {
        *out++ = (char)(0xc0 | (c >> 6));
        *out++ = (char)(0x80 | (c & 0x3f));
    }
    *out = '\0';
}

typedef struct token_names {
    const char *names[1024];
    int32_t types[1024];
    size_t n;
} token_names;

static void add_names(token_names *t, const char *const *names, int32_t type) {
    for (; names && *names; names++) {
        if (t->n == 1024)
            fatal("a test vocabulary has over 1024 tokens");
        t->names[t->n] = *names;
        t->types[t->n++] = type;
    }
}

void builder_vocabulary(gguf_builder *b, const vocabulary_parts *p) {
    char bytes[256][4];
    token_names t = {.n = 0};
    for (int i = 0; i < 256; i++) {
        byte_name(i, bytes[i]);
        add_names(&t, (const char *const[]){bytes[i], NULL}, 1);
    }
    add_names(&t, p->merged, 1);
    add_names(&t, p->control, 3);
    add_names(&t, p->user_defined, 4);
    size_t n_merges = 0;
    while (p->merges && p->merges[n_merges])
        n_merges++;
    builder_string(b, "tokenizer.ggml.model", "gpt2");
    builder_string(b, "tokenizer.ggml.pre", p->pre);
    builder_strings(b, "tokenizer.ggml.tokens", t.names, t.n);
    builder_i32s(b, "tokenizer.ggml.token_type", t.types, t.n);
    builder_strings(b, "tokenizer.ggml.merges", p->merges, n_merges);
}

int vocabulary_build(vocabulary *v, const gguf_builder *b, err *e) {
    *v = (vocabulary){0};
    gguf_builder_write(b, &v->bytes);
    if (gguf_open_memory(v->bytes.data, v->bytes.len, &v->file, e) ||
        tokenizer_open(v->file, &v->tokens, e)) {
        vocabulary_close(v);
        return -1;
    }
    return 0;
}

void vocabulary_close(vocabulary *v) {
    tokenizer_close(v->tokens);
    if (v->file)
        gguf_close(v->file);
    buf_release(&v->bytes);
    *v = (vocabulary){0};
}

// ---- real ones

static void copy_array(gguf_builder *b, const gguf *g, const char *key) {
    gguf_type element;
    uint64_t n;
    if (!gguf_array(g, key, &element, &n))
        fatal("%s is missing", key);
    built_key *k = builder_append_key(b, key, GGUF_ARRAY);
    buf_put_u32(&k->value, element);
    buf_put_u64(&k->value, n);
    for (uint64_t i = 0; i < n; i++) {
        gguf_string s;
        uint64_t number = 0;
        if (element == GGUF_STRING && gguf_array_string(g, key, i, &s)) {
            buf_put_u64(&k->value, s.n);
            buf_put(&k->value, s.p, s.n);
        } else if (gguf_array_u64(g, key, i, &number)) {
            buf_put_u32(&k->value, (uint32_t)number);
        }
    }
}

static void open_with_pre(vocabulary *v, const char *path, const char *pre) {
    gguf *g = NULL;
    err e = {0};
    gguf_builder *b = calloc(1, sizeof *b);
    if (!b || gguf_open(path, &g, &e))
        fatal("%s", b ? e.message : "out of memory");
    gguf_builder_init(b);
    builder_string(b, "tokenizer.ggml.model", "gpt2");
    builder_string(b, "tokenizer.ggml.pre", pre);
    builder_bool(b, "tokenizer.ggml.add_bos_token", false);
    copy_array(b, g, "tokenizer.ggml.tokens");
    copy_array(b, g, "tokenizer.ggml.token_type");
    copy_array(b, g, "tokenizer.ggml.merges");
    if (vocabulary_build(v, b, &e))
        fatal("%s", e.message);
    gguf_builder_release(b);
    free(b);
    gguf_close(g);
}

bool vocabulary_open(vocabulary *v, const char *name, const char *pre) {
    bool small = !strcmp(name, "smollm2");
    const char *variable = small ? "TIERGATE_TEST_MODEL" : "TIERGATE_TEST_VOCAB";
    const char *path = getenv(variable);
    err e = {0};
    *v = (vocabulary){0};
    if (!path || !file_exists(path)) {
        printf("skip: no vocabulary of %s (make %s, or set %s)\n", name,
               small ? "model-file" : "vocab-file", variable);
        return false;
    }
    if (pre)
        open_with_pre(v, path, pre);
    else if (gguf_open(path, &v->file, &e) || tokenizer_open(v->file, &v->tokens, &e))
        fatal("%s: %s", path, e.message);
    return true;
}

// ---- goldens

json_t *json_gz(const char *path) {
    gzFile f = gzopen(path, "rb");
    buf text = {0};
    char piece[65536];
    int n = 0;
    while (f && (n = gzread(f, piece, sizeof piece)) > 0 && text.len < MAX_GOLDEN_BYTES)
        buf_put(&text, piece, (size_t)n);
    if (!f || n < 0 || gzclose(f) != Z_OK)
        fatal("%s cannot be read", path);
    json_error_t why;
    json_t *j = json_loadb(text.data, text.len, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    if (!j)
        fatal("%s: %s", path, why.text);
    buf_release(&text);
    return j;
}
