// GGUF: whatever the bytes, opening them, walking everything that is then offered, and the checks
// that turn a file into a model end in an answer or an error with a message.
#include "model/gguf.h"
#include "model/model.h"
#include <stdlib.h>
#include <string.h>

static volatile unsigned sink; // keeps the reads

static void touch(const void *p, size_t n) {
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((const unsigned char *)p)[i];
    sink = sum;
}

static void walk_tensors(const gguf *g) {
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        char name[65] = {0};
        touch(t->data, t->bytes);
        memcpy(name, t->name.p, t->name.n);
        if (gguf_find(g, name) != t)
            abort();
    }
}

// Every key that is asked for by anybody, with every getter.
static void walk_keys(const gguf *g) {
    static const char *const keys[] = {
        "general.alignment",
        "general.architecture",
        "general.name",
        "llama.block_count",
        "llama.rope.freq_base",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.add_bos_token",
        "a.u8",
        "a.strings",
        "a.f64",
    };
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        gguf_string s = {0};
        gguf_type kind;
        uint64_t n = 0, v;
        double x;
        bool flag;
        if (gguf_has(g, keys[k], &kind) && gguf_type_name(kind)[0] == '?')
            abort();
        gguf_get_u64(g, keys[k], &v);
        gguf_get_f64(g, keys[k], &x);
        gguf_get_bool(g, keys[k], &flag);
        if (gguf_get_string(g, keys[k], &s))
            touch(s.p, s.n);
        gguf_array(g, keys[k], &kind, &n);
        for (uint64_t i = 0; i <= n; i++) {
            if (gguf_array_string(g, keys[k], i, &s))
                touch(s.p, s.n);
            gguf_array_u64(g, keys[k], i, &v);
            gguf_array_f64(g, keys[k], i, &x);
        }
    }
}

static int as_model(const gguf *g, err *e) {
    model_shape s;
    tokenizer *t = NULL;
    if (model_read_shape(g, &s, e) || model_check_tensors(g, &s, e) || tokenizer_open(g, &t, e))
        return -1;
    if (tokenizer_n_vocab(t) != s.n_vocab || s.head_dim % 8 || s.n_heads % s.n_kv_heads)
        abort();
    tokenizer_close(t);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gguf *g = NULL;
    err e = {0};
    if (gguf_open_memory(data, size, &g, &e)) {
        if (!e.message[0] || e.code != ERR_FORMAT)
            abort();
        return 0;
    }
    walk_tensors(g);
    walk_keys(g);
    if (as_model(g, &e) && !e.message[0])
        abort();
    gguf_close(g);
    return 0;
}
