// Malformed files, third table: well-formed GGUF whose metadata describes no model we can run.
#include "tests/support/gguf_malformed.h"
#include <math.h>
#include <string.h>

#define EPS "llama.attention.layer_norm_rms_epsilon"
#define HEADS "llama.attention.head_count"
#define KV_HEADS "llama.attention.head_count_kv"
#define KEY_LENGTH "llama.attention.key_length"
#define VALUE_LENGTH "llama.attention.value_length"
#define TOKENS "tokenizer.ggml.tokens"
#define BASE "llama.rope.freq_base"
#define ROTATED "llama.rope.dimension_count"
#define SCALING "llama.rope.scaling.type"
#define FACTOR "llama.rope.scaling.factor"
#define ORIGINAL "llama.rope.scaling.original_context_length"

static void drop(gguf_builder *b, const malformed *m) { builder_remove_key(b, m->what); }
static void u32(gguf_builder *b, const malformed *m) { builder_u32(b, m->what, (uint32_t)m->n); }
static void f32(gguf_builder *b, const malformed *m) { builder_f32(b, m->what, (float)m->x); }
static void string(gguf_builder *b, const malformed *m) { builder_string(b, m->what, m->text); }
static void yes(gguf_builder *b, const malformed *m) { builder_bool(b, m->what, m->n != 0); }

static void i32(gguf_builder *b, const malformed *m) {
    int32_t v = (int32_t)(int64_t)m->n;
    builder_raw(b, m->what, GGUF_I32, &v, sizeof v);
}

static void u64(gguf_builder *b, const malformed *m) {
    builder_raw(b, m->what, GGUF_U64, &m->n, sizeof m->n);
}

static void f64(gguf_builder *b, const malformed *m) {
    builder_raw(b, m->what, GGUF_F64, &m->x, sizeof m->x);
}

static void i32s(gguf_builder *b, const malformed *m) { // n elements
    int32_t v[300] = {0};
    builder_i32s(b, m->what, v, (size_t)m->n);
}

static void strings(gguf_builder *b, const malformed *m) { // n elements
    static const char *const v[] = {"a", "b", "c"};
    builder_strings(b, m->what, v, (size_t)m->n);
}

static void scaling_without_factor(gguf_builder *b, const malformed *m) {
    builder_string(b, SCALING, m->text);
}

static void yarn(gguf_builder *b, const malformed *m) { // and `what` is x
    builder_string(b, SCALING, "yarn");
    builder_f32(b, FACTOR, 4);
    builder_f32(b, m->what, (float)m->x);
}

static void yarn_original(gguf_builder *b, const malformed *m) {
    builder_string(b, SCALING, "yarn");
    builder_f32(b, FACTOR, 4);
    builder_u32(b, ORIGINAL, (uint32_t)m->n);
}

static void linear(gguf_builder *b, const malformed *m) { // with the factor x
    builder_string(b, SCALING, "linear");
    builder_f32(b, FACTOR, (float)m->x);
}

static void heads(gguf_builder *b, const malformed *m) { // n query heads, x KV heads
    builder_u32(b, HEADS, (uint32_t)m->n);
    builder_u32(b, KV_HEADS, (uint32_t)m->x);
}

static void key_length(gguf_builder *b, const malformed *m) {
    builder_u32(b, KEY_LENGTH, (uint32_t)m->n);
}

static void foreign(gguf_builder *b, const malformed *m) { builder_f32(b, m->what, (float)m->x); }

#define MISSING(key)                                                                               \
    { .name = "missing-" key, .expect = "key '" key "' is missing", .edit = drop, .what = key }
#define NO_INTEGER(key)                                                                            \
    {                                                                                              \
        .name = "string-for-" key, .expect = "key '" key "' is no non-negative integer",           \
        .edit = string, .what = key, .text = "12"                                                  \
    }
#define FLOAT_FOR(key)                                                                             \
    {                                                                                              \
        .name = "float-for-" key, .expect = "key '" key "' is no non-negative integer",            \
        .edit = f32, .what = key, .x = 8                                                           \
    }
#define NEGATIVE(key)                                                                              \
    {                                                                                              \
        .name = "negative-" key, .expect = "key '" key "' is no non-negative integer",             \
        .edit = i32, .what = key, .n = HUGE                                                        \
    }
#define ZERO(key)                                                                                  \
    { .name = "zero-" key, .expect = "key '" key "' is 0;", .edit = u32, .what = key, .n = 0 }
#define ABSURD(key)                                                                                \
    {                                                                                              \
        .name = "absurd-" key, .expect = "key '" key "' is 4294967295;", .edit = u32, .what = key, \
        .n = UINT32_MAX                                                                            \
    }
#define WRAPS(key)                                                                                 \
    {                                                                                              \
        .name = "wraps-" key, .expect = "key '" key "' is 4294967304;", .edit = u64, .what = key,  \
        .n = (UINT64_C(1) << 32) + 8                                                               \
    }
#define FOREIGN(suffix, value)                                                                     \
    {                                                                                              \
        .name = "foreign-" suffix, .expect = "key 'llama." suffix "' is", .edit = foreign,         \
        .what = "llama." suffix, .x = value                                                        \
    }
#define HUGE UINT64_MAX

static const malformed rows[] = {
    MISSING("general.architecture"),
    MISSING("llama.block_count"),
    MISSING("llama.context_length"),
    MISSING("llama.embedding_length"),
    MISSING("llama.feed_forward_length"),
    MISSING("llama.attention.head_count"),
    MISSING("llama.attention.layer_norm_rms_epsilon"),
    MISSING("tokenizer.ggml.tokens"),
    NO_INTEGER("llama.block_count"),
    NO_INTEGER("llama.context_length"),
    NO_INTEGER("llama.embedding_length"),
    NO_INTEGER("llama.feed_forward_length"),
    NO_INTEGER("llama.attention.head_count"),
    NO_INTEGER("llama.attention.head_count_kv"),
    NO_INTEGER("llama.attention.key_length"),
    NO_INTEGER("llama.vocab_size"),
    FLOAT_FOR("llama.block_count"),
    FLOAT_FOR("llama.context_length"),
    NEGATIVE("llama.block_count"),
    NEGATIVE("llama.context_length"),
    NEGATIVE("llama.embedding_length"),
    NEGATIVE("llama.feed_forward_length"),
    NEGATIVE("llama.attention.head_count"),
    ZERO("llama.block_count"),
    ZERO("llama.context_length"),
    ZERO("llama.embedding_length"),
    ZERO("llama.feed_forward_length"),
    ZERO("llama.attention.head_count"),
    ZERO("llama.attention.head_count_kv"),
    ZERO("llama.attention.key_length"),
    ZERO("llama.rope.dimension_count"),
    ABSURD("llama.block_count"),
    ABSURD("llama.context_length"),
    ABSURD("llama.embedding_length"),
    ABSURD("llama.feed_forward_length"),
    ABSURD("llama.attention.head_count"),
    ABSURD("llama.attention.head_count_kv"),
    ABSURD("llama.attention.key_length"),
    WRAPS("llama.block_count"),
    WRAPS("llama.context_length"),
    WRAPS("llama.embedding_length"),
    WRAPS("llama.attention.head_count"),
    FOREIGN("expert_count", 8),
    FOREIGN("attention.max_alibi_bias", 8),
    FOREIGN("attention.clamp_kqv", 8),
    FOREIGN("attention.scale", 0.5),
    FOREIGN("attn_logit_softcapping", 50),
    FOREIGN("final_logit_softcapping", 30),
    FOREIGN("logit_scale", 0.5),
    FOREIGN("embedding_scale", 12),
    FOREIGN("residual_scale", 0.2),
    FOREIGN("attention.causal", 0),
    FOREIGN("use_parallel_residual", 1),
    FOREIGN("nextn_predict_layers", 1),
    FOREIGN("rope.scaling.yarn_beta_fast", 16),
    FOREIGN("rope.scaling.yarn_beta_slow", 2),
    FOREIGN("rope.scaling.yarn_ext_factor", 0.5),
    FOREIGN("expert_used_count", NAN),
    {.name = "foreign-bool",
     .expect = "'llama.attention.causal' is 0",
     .edit = yes,
     .what = "llama.attention.causal"},
    {.name = "foreign-string",
     .expect = "'llama.expert_count' is no number",
     .edit = string,
     .what = "llama.expert_count",
     .text = "8"},
    {.name = "arch-unknown",
     .expect = "architecture 'gemma3' is not supported",
     .edit = string,
     .what = "general.architecture",
     .text = "gemma3"},
    {.name = "arch-empty",
     .expect = "architecture '' is not supported",
     .edit = string,
     .what = "general.architecture",
     .text = ""},
    {.name = "arch-upper-case",
     .expect = "architecture 'LLAMA' is not",
     .edit = string,
     .what = "general.architecture",
     .text = "LLAMA"},
    {.name = "arch-with-newline",
     .expect = "architecture 'llama?x' is not",
     .edit = string,
     .what = "general.architecture",
     .text = "llama\nx"},
    {.name = "arch-moe",
     .expect = "architecture 'qwen2moe' is not",
     .edit = string,
     .what = "general.architecture",
     .text = "qwen2moe"},
    {.name = "arch-integer",
     .expect = "'general.architecture' is no string",
     .edit = u32,
     .what = "general.architecture",
     .n = 1},
    {.name = "arch-other-than-keys",
     .expect = "key 'qwen2.block_count' is missing",
     .edit = string,
     .what = "general.architecture",
     .text = "qwen2"},
    {.name = "kind-adapter",
     .expect = "'general.type' is 'adapter'",
     .edit = string,
     .what = "general.type",
     .text = "adapter"},
    {.name = "kind-projector",
     .expect = "'general.type' is 'mmproj'",
     .edit = string,
     .what = "general.type",
     .text = "mmproj"},
    {.name = "kind-part",
     .expect = "split over 3 files",
     .edit = u32,
     .what = "split.count",
     .n = 3},
    {.name = "layers-1001",
     .expect = "'llama.block_count' is 1001;",
     .edit = u32,
     .what = "llama.block_count",
     .n = 1001},
    {.name = "eps-zero", .expect = "'" EPS "' is 0;", .edit = f32, .what = EPS, .x = 0},
    {.name = "eps-negative", .expect = "'" EPS "' is -1e-05", .edit = f32, .what = EPS, .x = -1e-5},
    {.name = "eps-one", .expect = "'" EPS "' is 1;", .edit = f32, .what = EPS, .x = 1},
    {.name = "eps-nan", .expect = "'" EPS "' is nan", .edit = f32, .what = EPS, .x = NAN},
    {.name = "eps-infinite", .expect = "'" EPS "' is inf", .edit = f32, .what = EPS, .x = INFINITY},
    {.name = "eps-underflows",
     .expect = "'" EPS "' is 1e-300",
     .edit = f64,
     .what = EPS,
     .x = 1e-300},
    {.name = "eps-string",
     .expect = "'" EPS "' is no number",
     .edit = string,
     .what = EPS,
     .text = "1e-5"},
    {.name = "base-zero", .expect = "'" BASE "' is 0;", .edit = f32, .what = BASE, .x = 0},
    {.name = "base-negative",
     .expect = "'" BASE "' is -10000",
     .edit = f32,
     .what = BASE,
     .x = -10000},
    {.name = "base-nan", .expect = "'" BASE "' is nan", .edit = f32, .what = BASE, .x = NAN},
    {.name = "base-infinite",
     .expect = "'" BASE "' is inf",
     .edit = f32,
     .what = BASE,
     .x = INFINITY},
    {.name = "base-f64-overflow",
     .expect = "'" BASE "' is 1e+300",
     .edit = f64,
     .what = BASE,
     .x = 1e300},
    {.name = "base-bool", .expect = "'" BASE "' is no number", .edit = yes, .what = BASE, .n = 1},
    {.name = "scaling-unknown",
     .expect = "'" SCALING "' is 'longrope'",
     .edit = string,
     .what = SCALING,
     .text = "longrope"},
    {.name = "scaling-integer",
     .expect = "'" SCALING "' is no string",
     .edit = u32,
     .what = SCALING,
     .n = 2},
    {.name = "linear-without-factor",
     .expect = "'" FACTOR "' is missing",
     .edit = scaling_without_factor,
     .text = "linear"},
    {.name = "yarn-without-factor",
     .expect = "'" FACTOR "' is missing",
     .edit = scaling_without_factor,
     .text = "yarn"},
    {.name = "linear-factor-zero", .expect = "'" FACTOR "' is 0;", .edit = linear, .x = 0},
    {.name = "linear-factor-below-one", .expect = "'" FACTOR "' is 0.5;", .edit = linear, .x = 0.5},
    {.name = "linear-factor-infinite",
     .expect = "'" FACTOR "' is inf",
     .edit = linear,
     .x = INFINITY},
    {.name = "yarn-factor-nan",
     .expect = "'" FACTOR "' is nan",
     .edit = yarn,
     .what = FACTOR,
     .x = NAN},
    {.name = "yarn-factor-absurd",
     .expect = "'" FACTOR "' is 1e+09",
     .edit = yarn,
     .what = FACTOR,
     .x = 1e9},
    {.name = "yarn-attention-nan",
     .expect = "attn_factor' is nan",
     .edit = yarn,
     .what = "llama.rope.scaling.attn_factor",
     .x = NAN},
    {.name = "yarn-attention-zero",
     .expect = "attn_factor' is 0",
     .edit = yarn,
     .what = "llama.rope.scaling.attn_factor",
     .x = 0},
    {.name = "yarn-original-zero", .expect = "'" ORIGINAL "' is 0;", .edit = yarn_original, .n = 0},
    {.name = "yarn-original-absurd",
     .expect = "'" ORIGINAL "' is 4294967295;",
     .edit = yarn_original,
     .n = UINT32_MAX},
    {.name = "scale-linear-old-zero",
     .expect = "rope.scale_linear' is 0",
     .edit = f32,
     .what = "llama.rope.scale_linear",
     .x = 0},
    {.name = "heads-not-shared",
     .expect = "4 query heads cannot share 3 KV heads",
     .edit = heads,
     .n = 4,
     .x = 3},
    {.name = "heads-fewer-than-kv",
     .expect = "2 query heads cannot share 4 KV heads",
     .edit = heads,
     .n = 2,
     .x = 4},
    {.name = "heads-not-in-width",
     .expect = "width 32 is no multiple of the 5 heads",
     .edit = heads,
     .n = 5,
     .x = 5},
    {.name = "heads-of-4", .expect = "heads of 4 values", .edit = heads, .n = 8, .x = 8},
    {.name = "heads-of-1", .expect = "heads of 1 values", .edit = heads, .n = 32, .x = 8},
    {.name = "heads-per-layer",
     .expect = "head_count' is no non-negative integer (its type is array)",
     .edit = i32s,
     .what = HEADS,
     .n = 2},
    {.name = "kv-heads-per-layer",
     .expect = "head_count_kv' is no non-negative integer",
     .edit = i32s,
     .what = KV_HEADS,
     .n = 2},
    {.name = "key-length-odd", .expect = "heads of 7 values", .edit = key_length, .n = 7},
    {.name = "key-length-257", .expect = "'" KEY_LENGTH "' is 257;", .edit = key_length, .n = 257},
    {.name = "value-length-differs",
     .expect = "'" VALUE_LENGTH "' is 16, but keys have 8",
     .edit = u32,
     .what = VALUE_LENGTH,
     .n = 16},
    {.name = "rope-of-a-part",
     .expect = "'" ROTATED "' is 4: rotating a part",
     .edit = u32,
     .what = ROTATED,
     .n = 4},
    {.name = "rope-of-too-much",
     .expect = "'" ROTATED "' is 16: rotating",
     .edit = u32,
     .what = ROTATED,
     .n = 16},
    {.name = "sliding-window",
     .expect = "sliding_window' is 128, less than the context",
     .edit = u32,
     .what = "llama.attention.sliding_window",
     .n = 128},
    {.name = "tokens-string",
     .expect = "'" TOKENS "' is no array of strings",
     .edit = string,
     .what = TOKENS,
     .text = "abc"},
    {.name = "tokens-integers",
     .expect = "'" TOKENS "' is no array of strings",
     .edit = i32s,
     .what = TOKENS,
     .n = 3},
    {.name = "tokens-none",
     .expect = "'" TOKENS "' has 0 elements",
     .edit = strings,
     .what = TOKENS,
     .n = 0},
    {.name = "tokens-one",
     .expect = "'" TOKENS "' has 1 elements",
     .edit = strings,
     .what = TOKENS,
     .n = 1},
    {.name = "tokens-too-few",
     .expect = "token_type' has 265 elements for 3 tokens",
     .edit = strings,
     .what = TOKENS,
     .n = 3},
    {.name = "vocab-size-differs",
     .expect = "'llama.vocab_size' is 300, but the tokenizer has 265",
     .edit = u32,
     .what = "llama.vocab_size",
     .n = 300},
    {.name = "token-types-too-few",
     .expect = "token_type' has 264 elements for 265",
     .edit = i32s,
     .what = "tokenizer.ggml.token_type",
     .n = 264},
    {.name = "token-types-string",
     .expect = "token_type' is no array",
     .edit = string,
     .what = "tokenizer.ggml.token_type",
     .text = ""},
    {.name = "scores-too-many",
     .expect = "scores' has 266 elements for 265",
     .edit = i32s,
     .what = "tokenizer.ggml.scores",
     .n = 266},
    {.name = "bos-past-end",
     .expect = "bos_token_id' is 265, but there are only 265",
     .edit = u32,
     .what = "tokenizer.ggml.bos_token_id",
     .n = 265},
    {.name = "eos-past-end",
     .expect = "eos_token_id' is 4294967295",
     .edit = u32,
     .what = "tokenizer.ggml.eos_token_id",
     .n = UINT32_MAX},
    {.name = "eot-past-end",
     .expect = "eot_token_id' is 100000",
     .edit = u32,
     .what = "tokenizer.ggml.eot_token_id",
     .n = 100000},
    {.name = "eos-negative",
     .expect = "eos_token_id' is no token id",
     .edit = i32,
     .what = "tokenizer.ggml.eos_token_id",
     .n = HUGE},
    {.name = "bos-string",
     .expect = "bos_token_id' is no token id",
     .edit = string,
     .what = "tokenizer.ggml.bos_token_id",
     .text = "<s>"},
};

const malformed *malformed_shape(size_t *n) {
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
