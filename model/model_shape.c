// Reads a model's shape from GGUF metadata and refuses what is missing, absurd, inconsistent or
// changes the computation in a way the engine does not follow. Owns nothing; any thread. Does not
// look at tensor shapes (model_check.c) beyond asking whether an optional tensor is there.
#include "model/model.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 1000u
#define MAX_WIDTH (1u << 20)
#define MAX_HEADS 1024u
#define MAX_HEAD_DIM 256u
#define MAX_VOCABULARY (1u << 22)
#define MAX_CONTEXT (1u << 24)

static const char *const arch_names[] = {
    [ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};

const char *model_arch_name(model_arch a) { return arch_names[a]; }

typedef struct reader { // a file and the prefix of its architecture's keys
    const gguf *g;
    const char *arch;
    char key[96]; // of the last look-up, for messages
} reader;

static const char *key_of(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, suffix);
    return r->key;
}

static int wrong_type(const reader *r, const char *wanted, err *e) {
    gguf_type kind;
    if (!gguf_has(r->g, r->key, &kind))
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is missing", r->key);
    return err_set(e, ERR_FORMAT, NULL, "key '%s' is no %s (its type is %s)", r->key, wanted,
                   gguf_type_name(kind));
}

static int read_int(reader *r, const char *suffix, uint64_t least, uint64_t most, int *out,
                    err *e) {
    uint64_t v;
    if (!gguf_get_u64(r->g, key_of(r, suffix), &v))
        return wrong_type(r, "non-negative integer", e);
    if (v < least || v > most)
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is %llu; %llu to %llu are possible", r->key,
                       (unsigned long long)v, (unsigned long long)least, (unsigned long long)most);
    *out = (int)v;
    return 0;
}

// As read_int; *out keeps its value when the key is absent.
static int read_int_if(reader *r, const char *suffix, uint64_t least, uint64_t most, int *out,
                       err *e) {
    return gguf_has(r->g, key_of(r, suffix), NULL) ? read_int(r, suffix, least, most, out, e) : 0;
}

static int read_float(reader *r, const char *suffix, double least, double most, float *out,
                      err *e) {
    double v;
    if (!gguf_get_f64(r->g, key_of(r, suffix), &v))
        return wrong_type(r, "number", e);
    if (!(v >= least && v <= most)) // NaN too
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is %g; %g to %g are possible", r->key, v,
                       least, most);
    *out = (float)v;
    return 0;
}

static int read_float_if(reader *r, const char *suffix, double least, double most, float *out,
                         err *e) {
    return gguf_has(r->g, key_of(r, suffix), NULL) ? read_float(r, suffix, least, most, out, e) : 0;
}

static bool spells(gguf_string s, const char *word) {
    return s.n == strlen(word) && memcmp(s.p, word, s.n) == 0;
}

// Quotes a string of the file in a message: cut, on one line.
static const char *shown(gguf_string s, char *out, size_t size) {
    size_t n = s.n < size - 1 ? s.n : size - 1;
    for (size_t i = 0; i < n; i++)
        out[i] = s.p[i] >= ' ' && s.p[i] <= '~' ? s.p[i] : '?';
    out[n] = '\0';
    return out;
}

static int read_arch(reader *r, model_arch *out, err *e) {
    gguf_string name;
    char text[64];
    snprintf(r->key, sizeof r->key, "general.architecture");
    if (!gguf_get_string(r->g, r->key, &name))
        return wrong_type(r, "string", e);
    for (int a = ARCH_LLAMA; a <= ARCH_QWEN3; a++)
        if (spells(name, arch_names[a])) {
            *out = (model_arch)a;
            r->arch = arch_names[a];
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED, NULL,
                   "architecture '%s' is not supported; llama, qwen2 and qwen3 are",
                   shown(name, text, sizeof text));
}

// The file is a whole model, not an adapter, projector or one part of several.
static int check_kind(const gguf *g, err *e) {
    gguf_string type;
    uint64_t parts;
    char text[64];
    if (gguf_get_string(g, "general.type", &type) && !spells(type, "model"))
        return err_set(e, ERR_UNSUPPORTED, NULL, "key 'general.type' is '%s': not a model",
                       shown(type, text, sizeof text));
    if (gguf_get_u64(g, "split.count", &parts) && parts > 1)
        return err_set(
            e, ERR_UNSUPPORTED, NULL,
            "the model is split over %llu files (key 'split.count'); merge them into one",
            (unsigned long long)parts);
    return 0;
}

// Keys that change the computation in ways the engine does not follow. A value equal to `harmless`
// is what the engine does anyway.
static int check_foreign_keys(reader *r, err *e) {
    static const struct {
        const char *suffix;
        double harmless;
    } keys[] = {
        {"expert_count", 0},
        {"expert_used_count", 0},
        {"attention.max_alibi_bias", 0},
        {"attention.clamp_kqv", 0},
        {"attention.scale", 0},
        {"attention.temperature_scale", 0},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"router_logit_softcapping", 0},
        {"logit_scale", 0},
        {"embedding_scale", 0},
        {"residual_scale", 0},
        {"nextn_predict_layers", 0},
        {"attention.causal", 1},
        {"use_parallel_residual", 0},
        {"rope.scaling.yarn_ext_factor", 1},
        {"rope.scaling.yarn_attn_factor", 1},
        {"rope.scaling.yarn_beta_fast", 32},
        {"rope.scaling.yarn_beta_slow", 1},
        {"rope.scaling.yarn_log_multiplier", 0},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double v;
        bool flag;
        const char *key = key_of(r, keys[i].suffix);
        if (!gguf_has(r->g, key, NULL))
            continue;
        if (gguf_get_bool(r->g, key, &flag))
            v = flag;
        else if (!gguf_get_f64(r->g, key, &v))
            return wrong_type(r, "number", e);
        if (v != keys[i].harmless)
            return err_set(e, ERR_UNSUPPORTED, NULL, "key '%s' is %g: this is not supported", key,
                           v);
    }
    return 0;
}

static int check_window(reader *r, const model_shape *s, err *e) {
    int window = 0;
    if (read_int_if(r, "attention.sliding_window", 0, UINT32_MAX / 2, &window, e))
        return -1;
    if (window > 0 && window < s->context)
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       "key '%s' is %d, less than the context: sliding windows are not supported",
                       r->key, window);
    return 0;
}

static int read_heads(reader *r, model_shape *s, err *e) {
    if (read_int(r, "attention.head_count", 1, MAX_HEADS, &s->n_heads, e))
        return -1;
    s->n_kv_heads = s->n_heads;
    if (read_int_if(r, "attention.head_count_kv", 1, MAX_HEADS, &s->n_kv_heads, e))
        return -1;
    if (s->n_heads % s->n_kv_heads != 0)
        return err_set(e, ERR_FORMAT, NULL,
                       "%d query heads cannot share %d KV heads (keys '%s.attention.head_count', "
                       "'%s.attention.head_count_kv')",
                       s->n_heads, s->n_kv_heads, r->arch, r->arch);
    if (gguf_has(r->g, key_of(r, "attention.key_length"), NULL)) {
        if (read_int(r, "attention.key_length", 1, MAX_HEAD_DIM, &s->head_dim, e))
            return -1;
    } else if (s->dim % s->n_heads != 0) {
        return err_set(e, ERR_FORMAT, NULL,
                       "width %d is no multiple of the %d heads, and there is no key '%s'", s->dim,
                       s->n_heads, r->key);
    } else {
        s->head_dim = s->dim / s->n_heads;
    }
    if (s->head_dim % 8 != 0 || s->head_dim > (int)MAX_HEAD_DIM)
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       "heads of %d values are not supported: multiples of 8 up to %u are",
                       s->head_dim, MAX_HEAD_DIM);
    int value = s->head_dim, rotated = s->head_dim;
    if (read_int_if(r, "attention.value_length", 1, MAX_HEAD_DIM, &value, e))
        return -1;
    if (value != s->head_dim)
        return err_set(e, ERR_UNSUPPORTED, NULL, "key '%s' is %d, but keys have %d values", r->key,
                       value, s->head_dim);
    if (read_int_if(r, "rope.dimension_count", 1, MAX_HEAD_DIM, &rotated, e))
        return -1;
    if (rotated != s->head_dim)
        return err_set(
            e, ERR_UNSUPPORTED, NULL,
            "key '%s' is %d: rotating a part of the %d values of a head is not supported", r->key,
            rotated, s->head_dim);
    return 0;
}

static int read_scaling_type(reader *r, model_shape *s, err *e) {
    gguf_string type;
    char text[64];
    if (!gguf_has(r->g, key_of(r, "rope.scaling.type"), NULL))
        return 0;
    if (!gguf_get_string(r->g, r->key, &type))
        return wrong_type(r, "string", e);
    if (spells(type, "linear"))
        s->scaling = ROPE_LINEAR;
    else if (spells(type, "yarn"))
        s->scaling = ROPE_YARN;
    else if (!spells(type, "none"))
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       "key '%s' is '%s'; none, linear and yarn are supported", r->key,
                       shown(type, text, sizeof text));
    return 0;
}

static int read_rope(reader *r, model_shape *s, err *e) {
    s->rope_base = 10000;
    s->rope_factor = s->rope_attn_factor = 1;
    s->rope_original_context = s->context;
    if (read_float_if(r, "rope.freq_base", 1, 1e12, &s->rope_base, e) || read_scaling_type(r, s, e))
        return -1;
    if (s->scaling != ROPE_NONE) {
        if (read_float(r, "rope.scaling.factor", 1, 1024, &s->rope_factor, e) ||
            read_float_if(r, "rope.scaling.attn_factor", 0.01, 100, &s->rope_attn_factor, e) ||
            read_int_if(r, "rope.scaling.original_context_length", 1, MAX_CONTEXT,
                        &s->rope_original_context, e))
            return -1;
    } else if (gguf_has(r->g, key_of(r, "rope.scale_linear"), NULL)) { // what files of 2023 say
        if (read_float(r, "rope.scale_linear", 1, 1024, &s->rope_factor, e))
            return -1;
        s->scaling = s->rope_factor > 1 ? ROPE_LINEAR : ROPE_NONE;
    }
    if (!gguf_find(r->g, "rope_freqs.weight"))
        return 0;
    if (s->scaling != ROPE_NONE)
        return err_set(e, ERR_FORMAT, NULL,
                       "both tensor 'rope_freqs.weight' and key '%s.rope.scaling.type' scale RoPE",
                       r->arch);
    s->scaling = ROPE_LLAMA3;
    return 0;
}

// An array that describes the vocabulary has one element for each token.
static int check_vocab_array(const gguf *g, const char *key, int n_vocab, err *e) {
    uint64_t n;
    if (!gguf_has(g, key, NULL))
        return 0;
    if (!gguf_array(g, key, NULL, &n))
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is no array", key);
    if (n != (uint64_t)n_vocab)
        return err_set(e, ERR_FORMAT, NULL, "key '%s' has %llu elements for %d tokens", key,
                       (unsigned long long)n, n_vocab);
    return 0;
}

static int check_token_id(const gguf *g, const char *key, int n_vocab, err *e) {
    uint64_t id;
    if (!gguf_has(g, key, NULL))
        return 0;
    if (!gguf_get_u64(g, key, &id))
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is no token id", key);
    if (id >= (uint64_t)n_vocab)
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is %llu, but there are only %d tokens", key,
                       (unsigned long long)id, n_vocab);
    return 0;
}

static int read_vocab(reader *r, model_shape *s, err *e) {
    static const char *const arrays[] = {"tokenizer.ggml.token_type", "tokenizer.ggml.scores"};
    static const char *const ids[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                      "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    gguf_type element;
    uint64_t n;
    snprintf(r->key, sizeof r->key, "tokenizer.ggml.tokens");
    if (!gguf_array(r->g, r->key, &element, &n) || element != GGUF_STRING)
        return wrong_type(r, "array of strings", e);
    if (n < 2 || n > MAX_VOCABULARY)
        return err_set(e, ERR_FORMAT, NULL, "key '%s' has %llu elements; 2 to %u are possible",
                       r->key, (unsigned long long)n, MAX_VOCABULARY);
    s->n_vocab = (int)n;
    int claimed = s->n_vocab;
    if (read_int_if(r, "vocab_size", 0, UINT32_MAX / 2, &claimed, e))
        return -1;
    if (claimed != s->n_vocab)
        return err_set(e, ERR_FORMAT, NULL, "key '%s' is %d, but the tokenizer has %d tokens",
                       r->key, claimed, s->n_vocab);
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        if (check_vocab_array(r->g, arrays[i], s->n_vocab, e))
            return -1;
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        if (check_token_id(r->g, ids[i], s->n_vocab, e))
            return -1;
    return 0;
}

int model_read_shape(const gguf *g, model_shape *out, err *e) {
    reader r = {.g = g};
    model_shape s = {0};
    if (check_kind(g, e) || read_arch(&r, &s.arch, e) || check_foreign_keys(&r, e) ||
        read_int(&r, "block_count", 1, MAX_LAYERS, &s.n_layers, e) ||
        read_int(&r, "context_length", 1, MAX_CONTEXT, &s.context, e) ||
        read_int(&r, "embedding_length", 8, MAX_WIDTH, &s.dim, e) ||
        read_int(&r, "feed_forward_length", 8, MAX_WIDTH, &s.intermediate, e) ||
        read_float(&r, "attention.layer_norm_rms_epsilon", 1e-12, 0.1, &s.rms_eps, e) ||
        read_heads(&r, &s, e) || read_rope(&r, &s, e) || check_window(&r, &s, e) ||
        read_vocab(&r, &s, e))
        return -1;
    s.tied_head = !gguf_find(g, "output.weight");
    s.qkv_bias = s.arch == ARCH_QWEN2 || gguf_find(g, "blk.0.attn_q.bias");
    // Converters permute llama's q and k, so that a pair lies side by side; directories have them
    // as they were trained, and say so by this key of ours.
    s.rope_pairs = s.arch == ARCH_LLAMA;
    gguf_get_bool(g, "tiergate.rope_pairs", &s.rope_pairs);
    *out = s;
    return 0;
}
