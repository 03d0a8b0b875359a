// Random weights block by block in each format's own bytes, so that no quantiser is needed: scales
// are f16 numbers of a chosen magnitude, the rest is random. Values are about as large as trained
// ones.
#include "tests/support/tiny_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tests/support/gguf_builder.h"

#define FORMAT(name_, type_)                                                                       \
    {                                                                                              \
        .name = name_, .arch = ARCH_LLAMA, .dim = 256, .n_heads = 4, .n_kv_heads = 2,              \
        .head_dim = 64, .intermediate = 512, .type = type_, .down = type_, .embed = type_          \
    }

const tiny_model tiny_models[] = {
    {"llama", ARCH_LLAMA, 128, 2, 1, 64, 192, WT_F32, WT_F32, WT_F32, false, ROPE_NONE},
    {"llama-linear", ARCH_LLAMA, 128, 2, 1, 64, 192, WT_F32, WT_F32, WT_F32, true, ROPE_LINEAR},
    {"llama3", ARCH_LLAMA, 192, 3, 3, 64, 160, WT_F32, WT_F32, WT_F32, false, ROPE_LLAMA3},
    {"qwen2", ARCH_QWEN2, 448, 7, 1, 64, 224, WT_F32, WT_F32, WT_F32, true, ROPE_NONE},
    {"qwen2-yarn", ARCH_QWEN2, 128, 2, 2, 64, 192, WT_F32, WT_F32, WT_F32, false, ROPE_YARN},
    {"qwen3", ARCH_QWEN3, 96, 4, 2, 128, 160, WT_F32, WT_F32, WT_F32, true, ROPE_NONE},
    FORMAT("f16", WT_F16),
    FORMAT("bf16", WT_BF16),
    FORMAT("q4_0", WT_Q4_0),
    FORMAT("q4_1", WT_Q4_1),
    FORMAT("q5_0", WT_Q5_0),
    FORMAT("q5_1", WT_Q5_1),
    FORMAT("q8_0", WT_Q8_0),
    FORMAT("q4_k", WT_Q4_K),
    FORMAT("q5_k", WT_Q5_K),
    FORMAT("q6_k", WT_Q6_K),
    {"mixed", ARCH_QWEN2, 256, 4, 1, 64, 512, WT_Q4_K, WT_Q6_K, WT_Q8_0, true, ROPE_NONE},
};
const int n_tiny_models = (int)(sizeof tiny_models / sizeof *tiny_models);

const tiny_model *tiny_model_find(const char *name) {
    for (int i = 0; i < n_tiny_models; i++)
        if (strcmp(tiny_models[i].name, name) == 0)
            return &tiny_models[i];
    return NULL;
}

// ---- random numbers: SplitMix64, started from the model's and the tensor's name

static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static uint64_t seed_of(const char *a, const char *b) {
    uint64_t h = 0xCBF29CE484222325u; // FNV-1a
    for (; *a; a++)
        h = (h ^ (unsigned char)*a) * 0x100000001B3u;
    for (; *b; b++)
        h = (h ^ (unsigned char)*b) * 0x100000001B3u;
    return h;
}

// Uniform in [-1, 1): 24 bits, so exact in float.
static float uniform(uint64_t *s) {
    return (float)((int32_t)(next(s) >> 40) - (1 << 23)) / (float)(1 << 23);
}

// An f16 in [2^exponent, 2^(exponent + 1)), negative if asked; exponent -15: a subnormal one.
static uint16_t half(uint64_t *s, int exponent, bool negative) {
    return (uint16_t)((negative ? 0x8000 : 0) | (exponent + 15) << 10 | (int)(next(s) & 1023));
}

static void put16(uint8_t *to, uint16_t v) { memcpy(to, &v, sizeof v); }

// The exponents of a block's scale and (negative) minimum that give values of about 0.1; where they
// lie.
typedef struct block_scale {
    weight_type type;
    int scale_at, scale, min_at, min; // min_at -1: none
    bool min_negative;
} block_scale;

static const block_scale scales[] = {
    {WT_Q4_0, 0, -6, -1, 0, false},  {WT_Q4_1, 0, -6, 2, -3, true},
    {WT_Q5_0, 0, -8, -1, 0, false},  {WT_Q5_1, 0, -8, 2, -4, true},
    {WT_Q8_0, 0, -11, -1, 0, false}, {WT_Q4_K, 0, -12, 2, -9, false},
    {WT_Q5_K, 0, -13, 2, -9, false}, {WT_Q6_K, 208, -15, -1, 0, false},
};

static void fill_block(const block_scale *b, uint8_t *to, int n_bytes, uint64_t *s) {
    for (int i = 0; i < n_bytes; i++)
        to[i] = (uint8_t)(next(s) >> 56);
    put16(to + b->scale_at, half(s, b->scale, false));
    if (b->min_at >= 0)
        put16(to + b->min_at, half(s, b->min, b->min_negative));
}

static const block_scale *find_scale(weight_type type) {
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        if (scales[i].type == type)
            return &scales[i];
    return NULL;
}

static void fill_value(weight_type type, uint8_t *to, uint64_t *s) {
    float v = uniform(s) * 0.15f;
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    if (type == WT_F32)
        memcpy(to, &v, sizeof v);
    else
        put16(to, type == WT_F16 ? half(s, -4, v < 0) : (uint16_t)(bits >> 16));
}

static void put_matrix(gguf_builder *file, const tiny_model *t, const char *name, weight_type type,
                       int n_in, int n_out) {
    uint64_t s = seed_of(t->name, name);
    int n_values = 1, n_bytes = 0;
    if (!weight_type_block(type, &n_values, &n_bytes) || n_in % n_values)
        abort();
    size_t n_blocks = (size_t)(n_in / n_values) * (size_t)n_out, size = (size_t)n_bytes;
    uint8_t *data = malloc(n_blocks * size);
    if (!data)
        abort();
    const block_scale *b = find_scale(type);
    for (size_t i = 0; i < n_blocks; i++)
        if (b)
            fill_block(b, data + i * size, n_bytes, &s);
        else
            fill_value(type, data + i * size, &s);
    builder_put_tensor(file, name, type, (uint64_t)n_in, (uint64_t)n_out, data, n_blocks * size);
    free(data);
}

// Around `middle`: 1 for gains, 0 for biases.
static void put_vector(gguf_builder *file, const tiny_model *t, const char *name, int n,
                       float middle) {
    uint64_t s = seed_of(t->name, name);
    float values[1024];
    for (int i = 0; i < n; i++)
        values[i] = middle + 0.5f * uniform(&s);
    builder_put_tensor(file, name, WT_F32, (uint64_t)n, 0, values, (size_t)n * sizeof *values);
}

// ---- the model

static const char *key(const tiny_model *t, const char *suffix) {
    static const char *const arch[] = {"llama", "qwen2", "qwen3"};
    static char text[96];
    snprintf(text, sizeof text, "%s.%s", arch[t->arch], suffix);
    return text;
}

static void put_scaling(gguf_builder *file, const tiny_model *t) {
    if (t->scaling == ROPE_NONE || t->scaling == ROPE_LLAMA3)
        return;
    builder_string(file, key(t, "rope.scaling.type"), t->scaling == ROPE_YARN ? "yarn" : "linear");
    builder_f32(file, key(t, "rope.scaling.factor"), TINY_FACTOR);
    builder_u32(file, key(t, "rope.scaling.original_context_length"), TINY_ORIGINAL);
}

// Llama 3.1's divisors, as converters write them.
static void put_rope_freqs(gguf_builder *file, const tiny_model *t) {
    float divisors[128];
    for (int i = 0; i < t->head_dim / 2; i++) {
        double wavelength = 2 * M_PI * pow(10000.0, 2.0 * i / t->head_dim);
        double low = TINY_ORIGINAL / 1.0, high = TINY_ORIGINAL / 4.0;
        double smooth = (TINY_ORIGINAL / wavelength - 1) / (4.0 - 1);
        divisors[i] = (float)(wavelength < high  ? 1
                              : wavelength > low ? TINY_FACTOR
                                                 : 1 / ((1 - smooth) / TINY_FACTOR + smooth));
    }
    builder_put_tensor(file, "rope_freqs.weight", WT_F32, (uint64_t)t->head_dim / 2, 0, divisors,
                       (size_t)t->head_dim / 2 * sizeof *divisors);
}

// 256 bytes in GPT-2's alphabet and 32 control tokens.
static void put_tokenizer(gguf_builder *file) {
    static char names[TINY_VOCAB][16];
    const char *tokens[TINY_VOCAB];
    int32_t types[TINY_VOCAB];
    for (int i = 0, other = 256; i < TINY_VOCAB; i++) {
        bool shown = (i >= 33 && i <= 126) || (i >= 161 && i <= 255 && i != 173);
        int c = i >= 256 || shown ? i : other++;
        if (i >= 256)
            snprintf(names[i], sizeof names[i], "<|%d|>", i);
        else if (c < 128)
            snprintf(names[i], sizeof names[i], "%c", c);
        else
            snprintf(names[i], sizeof names[i], "%c%c", 0xC0 | c >> 6, 0x80 | (c & 63));
        tokens[i] = names[i];
        types[i] = i >= 256 ? 3 : 1;
    }
    static const char *const merges[] = {"a b"};
    builder_string(file, "tokenizer.ggml.model", "gpt2");
    builder_string(file, "tokenizer.ggml.pre", "qwen2");
    builder_strings(file, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    builder_i32s(file, "tokenizer.ggml.token_type", types, TINY_VOCAB);
    builder_strings(file, "tokenizer.ggml.merges", merges, 0);
    builder_u32(file, "tokenizer.ggml.eos_token_id", 256);
}

static void put_keys(gguf_builder *file, const tiny_model *t) {
    static const char *const arch[] = {"llama", "qwen2", "qwen3"};
    builder_string(file, "general.architecture", arch[t->arch]);
    builder_string(file, "general.name", t->name);
    builder_u32(file, key(t, "block_count"), TINY_LAYERS);
    builder_u32(file, key(t, "context_length"), TINY_CONTEXT);
    builder_u32(file, key(t, "embedding_length"), (uint32_t)t->dim);
    builder_u32(file, key(t, "feed_forward_length"), (uint32_t)t->intermediate);
    builder_u32(file, key(t, "attention.head_count"), (uint32_t)t->n_heads);
    builder_u32(file, key(t, "attention.head_count_kv"), (uint32_t)t->n_kv_heads);
    builder_u32(file, key(t, "attention.key_length"), (uint32_t)t->head_dim);
    builder_u32(file, key(t, "attention.value_length"), (uint32_t)t->head_dim);
    builder_f32(file, key(t, "attention.layer_norm_rms_epsilon"), 1e-5f);
    builder_f32(file, key(t, "rope.freq_base"), 10000);
    put_scaling(file, t);
    put_tokenizer(file);
}

static void put_layer(gguf_builder *file, const tiny_model *t, int i) {
    char name[64];
    int q = t->n_heads * t->head_dim, kv = t->n_kv_heads * t->head_dim;
#define NAMED(suffix) (snprintf(name, sizeof name, "blk.%d." suffix, i), name)
    put_vector(file, t, NAMED("attn_norm.weight"), t->dim, 1);
    put_matrix(file, t, NAMED("attn_q.weight"), t->type, t->dim, q);
    put_matrix(file, t, NAMED("attn_k.weight"), t->type, t->dim, kv);
    put_matrix(file, t, NAMED("attn_v.weight"), t->down, t->dim, kv);
    if (t->arch == ARCH_QWEN2) {
        put_vector(file, t, NAMED("attn_q.bias"), q, 0);
        put_vector(file, t, NAMED("attn_k.bias"), kv, 0);
        put_vector(file, t, NAMED("attn_v.bias"), kv, 0);
    }
    if (t->arch == ARCH_QWEN3) {
        put_vector(file, t, NAMED("attn_q_norm.weight"), t->head_dim, 1);
        put_vector(file, t, NAMED("attn_k_norm.weight"), t->head_dim, 1);
    }
    put_matrix(file, t, NAMED("attn_output.weight"), t->type, q, t->dim);
    put_vector(file, t, NAMED("ffn_norm.weight"), t->dim, 1);
    put_matrix(file, t, NAMED("ffn_gate.weight"), t->type, t->dim, t->intermediate);
    put_matrix(file, t, NAMED("ffn_up.weight"), t->type, t->dim, t->intermediate);
    put_matrix(file, t, NAMED("ffn_down.weight"), t->down, t->intermediate, t->dim);
#undef NAMED
}

void tiny_model_bytes(const tiny_model *t, buf *out) {
    gguf_builder *file = calloc(1, sizeof *file);
    if (!file)
        abort();
    gguf_builder_init(file);
    put_keys(file, t);
    put_matrix(file, t, "token_embd.weight", t->embed, t->dim, TINY_VOCAB);
    put_vector(file, t, "output_norm.weight", t->dim, 1);
    if (!t->tied)
        put_matrix(file, t, "output.weight", t->embed, t->dim, TINY_VOCAB);
    if (t->scaling == ROPE_LLAMA3)
        put_rope_freqs(file, t);
    for (int i = 0; i < TINY_LAYERS; i++)
        put_layer(file, t, i);
    gguf_builder_write(file, out);
    gguf_builder_release(file);
    free(file);
}

int tiny_model_file(const tiny_model *t) {
    buf bytes = {0};
    int fd = memfd_create(t->name, MFD_CLOEXEC);
    tiny_model_bytes(t, &bytes);
    for (size_t at = 0; at < bytes.len;) {
        ssize_t n = write(fd, bytes.data + at, bytes.len - at);
        if (n <= 0)
            abort();
        at += (size_t)n;
    }
    buf_release(&bytes);
    return fd;
}
