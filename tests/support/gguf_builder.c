// Writes GGUF files for tests. Owns the bytes of every key and tensor until released; one thread.
// Checks nothing: what it is told to write, it writes, because most of its files are wrong on
// purpose.
#include "tests/support/gguf_builder.h"
#include "base/err.h"
#include <stdio.h>
#include <string.h>

void gguf_builder_init(gguf_builder *b) {
    *b = (gguf_builder){.magic = {'G', 'G', 'U', 'F'},
                        .version = 3,
                        .alignment = 32,
                        .n_keys = BUILDER_TRUTH,
                        .n_tensors = BUILDER_TRUTH};
}

static void release_key(built_key *k) {
    buf_release(&k->key);
    buf_release(&k->value);
}

static void release_tensor(built_tensor *t) {
    buf_release(&t->name);
    buf_release(&t->data);
}

void gguf_builder_release(gguf_builder *b) {
    for (size_t i = 0; i < b->used_keys; i++)
        release_key(&b->keys[i]);
    for (size_t i = 0; i < b->used_tensors; i++)
        release_tensor(&b->tensors[i]);
    gguf_builder_init(b);
}

static bool is_name(const buf *b, const char *name) {
    return b->len == strlen(name) && memcmp(b->data, name, b->len) == 0;
}

built_key *builder_key(gguf_builder *b, const char *key) {
    for (size_t i = 0; i < b->used_keys; i++)
        if (is_name(&b->keys[i].key, key))
            return &b->keys[i];
    return NULL;
}

built_key *builder_append_key(gguf_builder *b, const char *key, uint32_t type) {
    if (b->used_keys == sizeof b->keys / sizeof b->keys[0])
        fatal("gguf_builder: too many keys");
    built_key *k = &b->keys[b->used_keys++];
    *k = (built_key){.type = type};
    buf_puts(&k->key, key);
    return k;
}

static built_key *fresh(gguf_builder *b, const char *key, uint32_t type) {
    built_key *k = builder_key(b, key);
    if (!k)
        return builder_append_key(b, key, type);
    k->type = type;
    buf_clear(&k->value);
    return k;
}

built_key *builder_raw(gguf_builder *b, const char *key, uint32_t type, const void *p, size_t n) {
    built_key *k = fresh(b, key, type);
    buf_put(&k->value, p, n);
    return k;
}

void builder_u32(gguf_builder *b, const char *key, uint32_t v) {
    buf_put_u32(&fresh(b, key, GGUF_U32)->value, v);
}

void builder_f32(gguf_builder *b, const char *key, float v) {
    buf_put_f32(&fresh(b, key, GGUF_F32)->value, v);
}

void builder_bool(gguf_builder *b, const char *key, bool v) {
    buf_put_u8(&fresh(b, key, GGUF_BOOL)->value, v);
}

static void put_string(buf *out, const char *s) {
    buf_put_u64(out, strlen(s));
    buf_puts(out, s);
}

void builder_string(gguf_builder *b, const char *key, const char *v) {
    put_string(&fresh(b, key, GGUF_STRING)->value, v);
}

void builder_strings(gguf_builder *b, const char *key, const char *const *v, size_t n) {
    built_key *k = fresh(b, key, GGUF_ARRAY);
    buf_put_u32(&k->value, GGUF_STRING);
    buf_put_u64(&k->value, n);
    for (size_t i = 0; i < n; i++)
        put_string(&k->value, v[i]);
}

void builder_i32s(gguf_builder *b, const char *key, const int32_t *v, size_t n) {
    built_key *k = fresh(b, key, GGUF_ARRAY);
    buf_put_u32(&k->value, GGUF_I32);
    buf_put_u64(&k->value, n);
    for (size_t i = 0; i < n; i++)
        buf_put_u32(&k->value, (uint32_t)v[i]);
}

void builder_remove_key(gguf_builder *b, const char *key) {
    built_key *k = builder_key(b, key);
    if (!k)
        fatal("gguf_builder: no key %s", key);
    release_key(k);
    memmove(k, k + 1, (size_t)(&b->keys[--b->used_keys] - k) * sizeof *k);
}

built_tensor *builder_tensor(gguf_builder *b, const char *name) {
    for (size_t i = 0; i < b->used_tensors; i++)
        if (is_name(&b->tensors[i].name, name))
            return &b->tensors[i];
    return NULL;
}

static uint64_t row_bytes(uint32_t type, uint64_t n) {
    switch (type) {
    case 0:
        return n * 4;
    case 8:
        return n / 32 * 34;
    default:
        return n * 2; // F16, BF16
    }
}

static built_tensor *append_tensor(gguf_builder *b, const char *name, uint32_t type, uint64_t dim0,
                                   uint64_t dim1) {
    if (b->used_tensors == sizeof b->tensors / sizeof b->tensors[0])
        fatal("gguf_builder: too many tensors");
    built_tensor *t = &b->tensors[b->used_tensors++];
    *t = (built_tensor){.type = type, .n_dims = dim1 ? 2 : 1, .dims = {dim0, dim1}};
    buf_puts(&t->name, name);
    t->n_name = t->name.len;
    return t;
}

built_tensor *builder_put_tensor(gguf_builder *b, const char *name, uint32_t type, uint64_t dim0,
                                 uint64_t dim1, const void *data, size_t bytes) {
    built_tensor *t = append_tensor(b, name, type, dim0, dim1);
    buf_put(&t->data, data, bytes);
    return t;
}

built_tensor *builder_add_tensor(gguf_builder *b, const char *name, uint32_t type, uint64_t dim0,
                                 uint64_t dim1, const void *data) {
    size_t n = (size_t)(row_bytes(type, dim0) * (dim1 ? dim1 : 1));
    if (data)
        return builder_put_tensor(b, name, type, dim0, dim1, data, n);
    built_tensor *t = append_tensor(b, name, type, dim0, dim1);
    for (size_t i = 0; i < n; i++)
        buf_put_u8(&t->data, 0);
    return t;
}

void builder_remove_tensor(gguf_builder *b, const char *name) {
    built_tensor *t = builder_tensor(b, name);
    if (!t)
        fatal("gguf_builder: no tensor %s", name);
    release_tensor(t);
    memmove(t, t + 1, (size_t)(&b->tensors[--b->used_tensors] - t) * sizeof *t);
}

static void pad(buf *out, size_t start, uint32_t alignment) {
    while ((out->len - start) % alignment != 0)
        buf_put_u8(out, 0);
}

static void write_table(const gguf_builder *b, buf *out, buf *data) {
    for (size_t i = 0; i < b->used_tensors; i++) {
        const built_tensor *t = &b->tensors[i];
        pad(data, 0, b->alignment);
        buf_put_u64(out, t->n_name);
        buf_put(out, t->name.data, t->name.len);
        buf_put_u32(out, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims && d < 8; d++)
            buf_put_u64(out, t->dims[d]);
        buf_put_u32(out, t->type);
        buf_put_u64(out, t->keep_offset ? t->offset : data->len);
        buf_put(data, t->data.data, t->data.len);
    }
}

void gguf_builder_write(const gguf_builder *b, buf *out) {
    size_t start = out->len;
    buf data = {0};
    buf_put(out, b->magic, 4);
    buf_put_u32(out, b->version);
    buf_put_u64(out, b->n_tensors == BUILDER_TRUTH ? b->used_tensors : b->n_tensors);
    buf_put_u64(out, b->n_keys == BUILDER_TRUTH ? b->used_keys : b->n_keys);
    for (size_t i = 0; i < b->used_keys; i++) {
        const built_key *k = &b->keys[i];
        buf_put_u64(out, k->key.len);
        buf_put(out, k->key.data, k->key.len);
        buf_put_u32(out, k->type);
        buf_put(out, k->value.data, k->value.len);
    }
    write_table(b, out, &data);
    if (b->used_tensors > 0)
        pad(out, start, b->alignment);
    buf_put(out, data.data, data.len);
    buf_release(&data);
}

static uint32_t draw(uint64_t *state) { // splitmix64 (Steele, Lea, Flood 2014), upper half
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static void add_floats(gguf_builder *b, const char *name, uint64_t dim0, uint64_t dim1,
                       float middle, float spread, uint64_t *state) {
    buf data = {0};
    for (uint64_t i = 0; i < dim0 * (dim1 ? dim1 : 1); i++)
        buf_put_f32(&data, middle + spread * ((float)draw(state) / 2147483648.0f - 1.0f));
    builder_add_tensor(b, name, 0, dim0, dim1, data.data);
    buf_release(&data);
}

static void add_layer(gguf_builder *b, int layer, const char *arch, uint64_t *state) {
    const uint64_t q = SMALL_HEADS * SMALL_HEAD_DIM, kv = SMALL_KV_HEADS * SMALL_HEAD_DIM;
    const struct {
        const char *name;
        uint64_t dim0, dim1;
        const char *arch; // only there; NULL: everywhere
    } rows[] = {
        {"attn_norm.weight", SMALL_DIM, 0, NULL},
        {"attn_q.weight", SMALL_DIM, q, NULL},
        {"attn_k.weight", SMALL_DIM, kv, NULL},
        {"attn_v.weight", SMALL_DIM, kv, NULL},
        {"attn_q.bias", q, 0, "qwen2"},
        {"attn_k.bias", kv, 0, "qwen2"},
        {"attn_v.bias", kv, 0, "qwen2"},
        {"attn_q_norm.weight", SMALL_HEAD_DIM, 0, "qwen3"},
        {"attn_k_norm.weight", SMALL_HEAD_DIM, 0, "qwen3"},
        {"attn_output.weight", q, SMALL_DIM, NULL},
        {"ffn_norm.weight", SMALL_DIM, 0, NULL},
        {"ffn_gate.weight", SMALL_DIM, SMALL_INTERMEDIATE, NULL},
        {"ffn_up.weight", SMALL_DIM, SMALL_INTERMEDIATE, NULL},
        {"ffn_down.weight", SMALL_INTERMEDIATE, SMALL_DIM, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[64];
        if (rows[i].arch && strcmp(rows[i].arch, arch) != 0)
            continue;
        snprintf(name, sizeof name, "blk.%d.%s", layer, rows[i].name);
        bool is_norm = strstr(name, "norm") != NULL;
        add_floats(b, name, rows[i].dim0, rows[i].dim1, is_norm ? 1.0f : 0.0f, 0.2f, state);
    }
}

static void add_embedding(gguf_builder *b, uint64_t n_vocab, uint64_t *state) {
    buf data = {0};
    for (uint64_t i = 0; i < n_vocab * (SMALL_DIM / 32); i++) {
        buf_put_u16(&data, 0x2000); // 2^-7 in binary16
        for (int j = 0; j < 32; j++)
            buf_put_u8(&data, (uint8_t)draw(state));
    }
    builder_add_tensor(b, "token_embd.weight", 8, SMALL_DIM, n_vocab, data.data);
    buf_release(&data);
}

// The character that stands for a byte in a byte-level vocabulary (GPT-2's bytes_to_unicode).
static void byte_character(int byte, char out[3]) {
    int c = byte, shifted = 256;
    for (int i = 0; i < 256; i++) {
        bool plain = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (i == byte)
            c = plain ? i : shifted;
        shifted += !plain;
    }
    if (c < 128) {
        out[0] = (char)c;
        out[1] = '\0';
    } else {
        out[0] = (char)(0xc0 | (c >> 6));
        out[1] = (char)(0x80 | (c & 0x3f));
        out[2] = '\0';
    }
}

// 256 bytes, a few merges, three control tokens. Returns the number of tokens.
static size_t add_vocabulary(gguf_builder *b) {
    static const char *const merged[] = {"he", "ll", "llo", "hello", "\xc4\xa0t", "\xc4\xa0the"};
    static const char *const merges[] = {"h e",    "l l",        "ll o",
                                         "he llo", "\xc4\xa0 t", "\xc4\xa0t he"};
    static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    static char bytes[256][3];
    const char *tokens[265];
    int32_t types[265];
    size_t n = 0;
    for (int i = 0; i < 256; i++) {
        byte_character(i, bytes[i]);
        tokens[n++] = bytes[i];
    }
    for (size_t i = 0; i < 6; i++)
        tokens[n++] = merged[i];
    for (size_t i = 0; i < 3; i++)
        tokens[n++] = control[i];
    for (size_t i = 0; i < n; i++)
        types[i] = i >= n - 3 ? 3 : 1;
    builder_string(b, "tokenizer.ggml.model", "gpt2");
    builder_string(b, "tokenizer.ggml.pre", "gpt-2");
    builder_strings(b, "tokenizer.ggml.tokens", tokens, n);
    builder_i32s(b, "tokenizer.ggml.token_type", types, n);
    builder_strings(b, "tokenizer.ggml.merges", merges, 6);
    builder_u32(b, "tokenizer.ggml.bos_token_id", (uint32_t)n - 3);
    builder_u32(b, "tokenizer.ggml.eos_token_id", (uint32_t)n - 1);
    builder_bool(b, "tokenizer.ggml.add_bos_token", false);
    return n;
}

void builder_small_model(gguf_builder *b, const char *arch, uint64_t seed) {
    static const struct {
        const char *suffix;
        uint32_t value;
    } numbers[] = {
        {"block_count", SMALL_LAYERS},         {"context_length", SMALL_CONTEXT},
        {"embedding_length", SMALL_DIM},       {"feed_forward_length", SMALL_INTERMEDIATE},
        {"attention.head_count", SMALL_HEADS}, {"attention.head_count_kv", SMALL_KV_HEADS},
    };
    char key[64];
    builder_string(b, "general.architecture", arch);
    builder_string(b, "general.name", "Tiny");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, numbers[i].suffix);
        builder_u32(b, key, numbers[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    builder_f32(b, key, 1e-5f);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    builder_f32(b, key, 10000);
    size_t n_vocab = add_vocabulary(b);
    add_embedding(b, n_vocab, &seed);
    add_floats(b, "output_norm.weight", SMALL_DIM, 0, 1.0f, 0.2f, &seed);
    for (int i = 0; i < SMALL_LAYERS; i++)
        add_layer(b, i, arch, &seed);
}
