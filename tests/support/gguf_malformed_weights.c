// Malformed files, fourth and fifth table: models whose tensors are not those of the architecture,
// and models whose tokenizer cannot be one.
#include "tests/support/gguf_malformed.h"
#include <math.h>
#include <string.h>

static void drop(gguf_builder *b, const malformed *m) { builder_remove_tensor(b, m->what); }

static void smaller(gguf_builder *b, const malformed *m) { // its last dimension less one
    built_tensor *t = builder_tensor(b, m->what);
    t->dims[t->n_dims - 1]--;
}

static void transposed(gguf_builder *b, const malformed *m) {
    built_tensor *t = builder_tensor(b, m->what);
    uint64_t d = t->dims[0];
    t->dims[0] = t->dims[1];
    t->dims[1] = d;
}

static void with_dims(gguf_builder *b, const malformed *m) {
    built_tensor *t = builder_tensor(b, m->what);
    for (uint32_t d = t->n_dims; d < m->n; d++)
        t->dims[d] = 1;
    if (m->n == 1)
        t->dims[0] *= t->dims[1];
    t->n_dims = (uint32_t)m->n;
}

static void of_type(gguf_builder *b, const malformed *m) {
    builder_tensor(b, m->what)->type = (uint32_t)m->n;
}

static void extra(gguf_builder *b, const malformed *m) {
    builder_add_tensor(b, m->what, 0, 32, 0, NULL);
}

static void no_tensors(gguf_builder *b, const malformed *m) {
    (void)m;
    while (b->used_tensors > 0)
        builder_remove_tensor(b, b->tensors[b->used_tensors - 1].name.data);
}

static void one_layer_more(gguf_builder *b, const malformed *m) {
    builder_u32(b, "llama.block_count", (uint32_t)m->n);
}

static void rope_freqs(gguf_builder *b, const malformed *m) { // n of them, all x
    float v[64];
    for (size_t i = 0; i < m->n; i++)
        v[i] = i + 1 == m->n ? (float)m->x : 1;
    builder_add_tensor(b, "rope_freqs.weight", 0, m->n, 0, v);
}

static void rope_freqs_and_yarn(gguf_builder *b, const malformed *m) {
    rope_freqs(b, m);
    builder_string(b, "llama.rope.scaling.type", "yarn");
    builder_f32(b, "llama.rope.scaling.factor", 4);
}

static void wide_output(gguf_builder *b, const malformed *m) {
    builder_add_tensor(b, "output.weight", 8, 32, m->n, NULL);
}

static void more_tokens(gguf_builder *b, const malformed *m) { // than the embedding has rows
    (void)m;
    built_tensor *t = builder_tensor(b, "token_embd.weight");
    t->dims[1] -= 5;
}

// ---- tokenizer
static void key_drop(gguf_builder *b, const malformed *m) { builder_remove_key(b, m->what); }
static void key_string(gguf_builder *b, const malformed *m) { builder_string(b, m->what, m->text); }
static void key_u32(gguf_builder *b, const malformed *m) {
    builder_u32(b, m->what, (uint32_t)m->n);
}

// The first occurrence of `text` in the key's value has its last byte replaced by n.
static void patch(gguf_builder *b, const malformed *m) {
    buf *v = &builder_key(b, m->what)->value;
    char *p = memmem(v->data, v->len, m->text, strlen(m->text));
    p[strlen(m->text) - 1] = (char)m->n;
}

static void kind_of_token(gguf_builder *b, const malformed *m) {
    int32_t v[265];
    for (int i = 0; i < 265; i++)
        v[i] = 1;
    v[100] = (int32_t)m->n;
    builder_i32s(b, "tokenizer.ggml.token_type", v, 265);
}

static void one_merge(gguf_builder *b, const malformed *m) {
    builder_strings(b, "tokenizer.ggml.merges", &m->text, 1);
}

static void adds_bos_without(gguf_builder *b, const malformed *m) {
    builder_remove_key(b, m->what);
    builder_bool(b, "tokenizer.ggml.add_bos_token", true);
}

#define L "blk.1."
#define MISSING(tensor)                                                                            \
    {                                                                                              \
        .name = "missing-" tensor, .expect = "tensor '" tensor "' is missing", .edit = drop,       \
        .what = tensor                                                                             \
    }
#define MISSING_IN(a, tensor)                                                                      \
    {                                                                                              \
        .name = a "-missing-" tensor, .expect = "tensor '" tensor "' is missing", .edit = drop,    \
        .arch = a, .what = tensor                                                                  \
    }
#define SMALLER(tensor)                                                                            \
    { .name = "smaller-" tensor, .expect = "tensor '" tensor "' ", .edit = smaller, .what = tensor }
#define SMALLER_IN(a, tensor)                                                                      \
    {                                                                                              \
        .name = a "-smaller-" tensor, .expect = "tensor '" tensor "' ", .edit = smaller,           \
        .arch = a, .what = tensor                                                                  \
    }
#define OF_TYPE(title, number)                                                                     \
    {                                                                                              \
        .name = "matrix-of-" title,                                                                \
        .expect = "tensor '" L "ffn_up.weight' is " title "; F32, F16", .edit = of_type,           \
        .what = L "ffn_up.weight", .n = number                                                     \
    }
#define VECTOR_OF(title, number)                                                                   \
    {                                                                                              \
        .name = "vector-of-" title, .expect = "is " title "; a vector must be F32",                \
        .edit = of_type, .what = L "ffn_norm.weight", .n = number                                  \
    }
#define EXTRA(tensor)                                                                              \
    {                                                                                              \
        .name = "extra-" tensor, .expect = "tensor '" tensor "' does not belong", .edit = extra,   \
        .what = tensor                                                                             \
    }

static const malformed weights[] = {
    MISSING("token_embd.weight"),
    MISSING("output_norm.weight"),
    MISSING("blk.0.attn_norm.weight"),
    MISSING(L "attn_norm.weight"),
    MISSING(L "attn_q.weight"),
    MISSING(L "attn_k.weight"),
    MISSING(L "attn_v.weight"),
    MISSING(L "attn_output.weight"),
    MISSING(L "ffn_norm.weight"),
    MISSING(L "ffn_gate.weight"),
    MISSING(L "ffn_up.weight"),
    MISSING(L "ffn_down.weight"),
    MISSING_IN("qwen2", L "attn_q.bias"),
    MISSING_IN("qwen2", L "attn_k.bias"),
    MISSING_IN("qwen2", L "attn_v.bias"),
    MISSING_IN("qwen3", L "attn_q_norm.weight"),
    MISSING_IN("qwen3", L "attn_k_norm.weight"),
    SMALLER("token_embd.weight"),
    SMALLER("output_norm.weight"),
    SMALLER(L "attn_norm.weight"),
    SMALLER(L "attn_q.weight"),
    SMALLER(L "attn_k.weight"),
    SMALLER(L "attn_v.weight"),
    SMALLER(L "attn_output.weight"),
    SMALLER(L "ffn_norm.weight"),
    SMALLER(L "ffn_gate.weight"),
    SMALLER(L "ffn_up.weight"),
    SMALLER(L "ffn_down.weight"),
    SMALLER_IN("qwen2", L "attn_q.bias"),
    SMALLER_IN("qwen2", L "attn_k.bias"),
    SMALLER_IN("qwen2", L "attn_v.bias"),
    SMALLER_IN("qwen3", L "attn_q_norm.weight"),
    SMALLER_IN("qwen3", L "attn_k_norm.weight"),
    OF_TYPE("Q8_1", 9),
    OF_TYPE("IQ4_NL", 20),
    OF_TYPE("MXFP4", 39),
    OF_TYPE("I8", 24),
    OF_TYPE("I16", 25),
    OF_TYPE("I32", 26),
    VECTOR_OF("Q8_0", 8),
    VECTOR_OF("I32", 26),
    EXTRA("output.bias"),
    EXTRA("blk.2.attn_norm.weight"),
    EXTRA("blk.0.attn_q_norm.weight"),
    EXTRA("blk.0.attn_output.bias"),
    EXTRA("blk.1.attn_q.bias"),
    EXTRA("blk.0.ffn_up.bias"),
    EXTRA("blk.0.ffn_gate_inp.weight"),
    EXTRA("blk.0.attn_q.weight.lora_a"),
    EXTRA("position_embd.weight"),
    EXTRA("blk.-1.attn_norm.weight"),
    EXTRA("blk.00.attn_norm.weight"),
    {.name = "bias-of-q-alone",
     .expect = "'blk.0.attn_k.bias' is missing",
     .edit = extra,
     .what = "blk.0.attn_q.bias"},
    {.name = "transposed-ffn-up",
     .expect = "is [64, 32] in 2 dimension(s); expected is [32, 64]",
     .edit = transposed,
     .what = L "ffn_up.weight"},
    {.name = "transposed-ffn-down",
     .expect = "is [32, 64] in 2 dimension(s); expected is [64, 32]",
     .edit = transposed,
     .what = L "ffn_down.weight"},
    {.name = "transposed-attn-k",
     .expect = "expected is [32, 16]",
     .edit = transposed,
     .what = L "attn_k.weight"},
    {.name = "matrix-flat",
     .expect = "is [2048, 1] in 1 dimension(s)",
     .edit = with_dims,
     .what = L "ffn_up.weight",
     .n = 1},
    {.name = "matrix-of-3-dims",
     .expect = "in 3 dimension(s); expected",
     .edit = with_dims,
     .what = L "ffn_up.weight",
     .n = 3},
    {.name = "matrix-of-4-dims",
     .expect = "in 4 dimension(s); expected",
     .edit = with_dims,
     .what = L "ffn_up.weight",
     .n = 4},
    {.name = "vector-of-2-dims",
     .expect = "has 2 dimension(s)",
     .edit = with_dims,
     .what = L "ffn_norm.weight",
     .n = 2},
    {.name = "no-tensors", .expect = "the file has no tensors", .edit = no_tensors},
    {.name = "layer-missing",
     .expect = "tensor 'blk.2.attn_norm.weight' is missing",
     .edit = one_layer_more,
     .n = 3},
    {.name = "layer-too-many",
     .expect = "tensor 'blk.1.attn_norm.weight' does not belong",
     .edit = one_layer_more,
     .n = 1},
    {.name = "embedding-shorter-than-vocabulary",
     .expect = "'token_embd.weight' is [32, 260]",
     .edit = more_tokens},
    {.name = "output-longer-than-vocabulary",
     .expect = "'output.weight' is [32, 266]",
     .edit = wide_output,
     .n = 266},
    {.name = "rope-freqs-too-few",
     .expect = "'rope_freqs.weight' has 1 dimension(s), the first 3",
     .edit = rope_freqs,
     .n = 3,
     .x = 1},
    {.name = "rope-freqs-too-many",
     .expect = "'rope_freqs.weight' has 1 dimension(s), the first 8",
     .edit = rope_freqs,
     .n = 8,
     .x = 1},
    {.name = "rope-freqs-zero",
     .expect = "element 3 of tensor 'rope_freqs.weight' is 0",
     .edit = rope_freqs,
     .n = 4,
     .x = 0},
    {.name = "rope-freqs-negative",
     .expect = "element 3 of tensor 'rope_freqs.weight' is -1",
     .edit = rope_freqs,
     .n = 4,
     .x = -1},
    {.name = "rope-freqs-nan",
     .expect = "element 3 of tensor 'rope_freqs.weight' is nan",
     .edit = rope_freqs,
     .n = 4,
     .x = NAN},
    {.name = "rope-freqs-infinite",
     .expect = "element 3 of tensor 'rope_freqs.weight' is inf",
     .edit = rope_freqs,
     .n = 4,
     .x = INFINITY},
    {.name = "rope-scaled-twice",
     .expect = "scale RoPE",
     .edit = rope_freqs_and_yarn,
     .n = 4,
     .x = 1},
};

static const malformed tokenizers[] = {
    {.name = "tokenizer-model-missing",
     .expect = "tokenizer.ggml.model is missing",
     .edit = key_drop,
     .what = "tokenizer.ggml.model"},
    {.name = "tokenizer-model-sentencepiece",
     .expect = "tokenizer.ggml.model \"llama\" is not supported",
     .edit = key_string,
     .what = "tokenizer.ggml.model",
     .text = "llama"},
    {.name = "tokenizer-model-integer",
     .expect = "tokenizer.ggml.model",
     .edit = key_u32,
     .what = "tokenizer.ggml.model",
     .n = 1},
    {.name = "pre-missing",
     .expect = "tokenizer.ggml.pre",
     .edit = key_drop,
     .what = "tokenizer.ggml.pre"},
    {.name = "pre-unknown",
     .expect = "tokenizer.ggml.pre \"klingon\"",
     .edit = key_string,
     .what = "tokenizer.ggml.pre",
     .text = "klingon"},
    {.name = "pre-integer",
     .expect = "tokenizer.ggml.pre",
     .edit = key_u32,
     .what = "tokenizer.ggml.pre",
     .n = 1},
    {.name = "merges-missing",
     .expect = "tokenizer.ggml.merges is missing",
     .edit = key_drop,
     .what = "tokenizer.ggml.merges"},
    {.name = "merges-string",
     .expect = "tokenizer.ggml.merges is missing or not an array",
     .edit = key_string,
     .what = "tokenizer.ggml.merges",
     .text = "h e"},
    {.name = "merge-without-space",
     .expect = "tokenizer.ggml.merges: merge 0",
     .edit = one_merge,
     .text = "he"},
    {.name = "merge-empty",
     .expect = "tokenizer.ggml.merges: merge 0",
     .edit = one_merge,
     .text = ""},
    {.name = "merge-of-unknown-token",
     .expect = "tokenizer.ggml.merges: merge 0",
     .edit = one_merge,
     .text = "xyzzy plugh"},
    {.name = "merge-to-unknown-token",
     .expect = "tokenizer.ggml.merges: merge 0",
     .edit = one_merge,
     .text = "q q"},
    {.name = "token-types-missing",
     .expect = "token_type is missing",
     .edit = key_drop,
     .what = "tokenizer.ggml.token_type"},
    {.name = "token-type-0",
     .expect = "token 100 has no known type",
     .edit = kind_of_token,
     .n = 0},
    {.name = "token-type-7",
     .expect = "token 100 has no known type",
     .edit = kind_of_token,
     .n = 7},
    {.name = "token-twice",
     .expect = "tokenizer.ggml.tokens: tokens",
     .edit = patch,
     .what = "tokenizer.ggml.tokens",
     .text = "h",
     .n = 'x'},
    {.name = "token-not-utf8",
     .expect = "is not UTF-8",
     .edit = patch,
     .what = "tokenizer.ggml.tokens",
     .text = "<|im_s",
     .n = 0xff},
    {.name = "bos-added-but-missing",
     .expect = "bos_token_id is missing",
     .edit = adds_bos_without,
     .what = "tokenizer.ggml.bos_token_id"},
    {.name = "add-bos-integer",
     .expect = "add_bos_token is not a bool",
     .edit = key_u32,
     .what = "tokenizer.ggml.add_bos_token",
     .n = 1},
};

const malformed *malformed_weights(size_t *n) {
    *n = sizeof weights / sizeof weights[0];
    return weights;
}

const malformed *malformed_tokenizer(size_t *n) {
    *n = sizeof tokenizers / sizeof tokenizers[0];
    return tokenizers;
}
