// config.json and generation_config.json as GGUF metadata. Fields that change the computation in a
// way the engine does not follow are refused by name. Owns nothing; any thread. Ranges that the
// shape's reader checks anyway (model_shape.c) are left to it.
#include "model/hf_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define CONFIG "config.json"
#define MAX_CONFIG_BYTES (1u << 20)

static const struct {
    const char *type, *arch, *class; // model_type, GGUF's architecture, architectures[0]
} kinds[] = {
    {"llama", "llama", "LlamaForCausalLM"},
    {"mistral", "llama", "MistralForCausalLM"},
    {"qwen2", "qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "qwen3", "Qwen3ForCausalLM"},
};

static void put_arch_key(char *out, size_t n, const hf_config *c, const char *suffix) {
    snprintf(out, n, "%s.%s", c->arch, suffix);
}

static void put_int(hf_head *h, const hf_config *c, const char *suffix, int64_t v) {
    char key[96];
    put_arch_key(key, sizeof key, c, suffix);
    hf_put_u64(h, key, (uint64_t)v);
}

static void put_number(hf_head *h, const hf_config *c, const char *suffix, double v) {
    char key[96];
    put_arch_key(key, sizeof key, c, suffix);
    hf_put_f64(h, key, v);
}

// ---- which model

static int read_kind(const json_fields *f, hf_config *c, err *e) {
    static const char why[] = "llama, mistral, qwen2 and qwen3 are supported";
    const char *type = NULL;
    const json_t *classes = json_field(f, "architectures");
    if (json_field_text(f, "model_type", &type, e))
        return -1;
    if (!type)
        return json_field_missing(f, "model_type", e);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type))
            continue;
        c->arch = kinds[i].arch;
        const char *class = json_string_value(json_array_get(classes, 0));
        if (classes && (!class || strcmp(class, kinds[i].class)))
            return json_field_unsupported(f, "architectures", "it does not fit model_type", e);
        return 0;
    }
    return json_field_unsupported(f, "model_type", why, e);
}

static int check_harmless(const json_fields *f, err *e) {
    static const struct {
        const char *key, *harmless; // JSON
    } fields[] = {
        {"hidden_act", "\"silu\""},
        {"mlp_bias", "false"},
        {"partial_rotary_factor", "1"},
        {"is_encoder_decoder", "false"},
        {"add_cross_attention", "false"},
        {"logits_scaling", "1"},
        {"final_logit_softcapping", "0"},
        {"attn_logit_softcapping", "0"},
        {"num_experts", "0"},
        {"num_local_experts", "0"},
        {"use_sliding_window", "false"},
        {"rope_interleaved", "false"},
        {"auto_map", "null"},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *value = json_loads(fields[i].harmless, JSON_DECODE_ANY, NULL);
        int rc = json_field_must_be(f, fields[i].key, value, "this is not supported", e);
        json_decref(value);
        if (rc)
            return -1;
    }
    const json_t *layers = json_field(f, "layer_types");
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const char *type = json_string_value(json_array_get(layers, i));
        if (!type || strcmp(type, "full_attention"))
            return json_field_unsupported(f, "layer_types", "full_attention alone is supported", e);
    }
    return 0;
}

// ---- numbers

static int read_sizes(const json_fields *f, hf_config *c, hf_head *h, err *e) {
    static const struct {
        const char *field, *key;
        bool required;
    } sizes[] = {
        {"num_hidden_layers", "block_count", true},
        {"hidden_size", "embedding_length", true},
        {"intermediate_size", "feed_forward_length", true},
        {"num_attention_heads", "attention.head_count", true},
        {"num_key_value_heads", "attention.head_count_kv", false},
    };
    int64_t hidden = 0, heads = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t v = -1;
        if (json_field_int(f, sizes[i].field, 1, INT32_MAX, &v, e))
            return -1;
        if (v < 0 && sizes[i].required)
            return json_field_missing(f, sizes[i].field, e);
        if (v >= 0)
            put_int(h, c, sizes[i].key, v);
        hidden = i == 1 ? v : hidden;
        heads = i == 3 ? v : heads;
    }
    c->head_dim = hidden / heads;
    if (json_field_int(f, "head_dim", 1, 256, &c->head_dim, e))
        return -1;
    if (json_field(f, "head_dim")) {
        put_int(h, c, "attention.key_length", c->head_dim);
        put_int(h, c, "attention.value_length", c->head_dim);
    }
    if (json_field_int(f, "vocab_size", 2, 1 << 22, &c->n_vocab, e))
        return -1;
    return c->n_vocab ? 0 : json_field_missing(f, "vocab_size", e);
}

// ---- RoPE: rope_theta and rope_scaling, or both in rope_parameters (transformers 5).

typedef struct rope {
    json_fields fields; // of rope_scaling or rope_parameters; no object: none
    const char *type;
    double theta, factor;
    int64_t context, original;
} rope;

static int read_factor(const rope *r, hf_config *c, hf_head *h, err *e) {
    if (r->factor == 0)
        return json_field_missing(&r->fields, "factor", e);
    put_number(h, c, "rope.scaling.factor", r->factor);
    put_int(h, c, "rope.scaling.original_context_length", r->original);
    return 0;
}

// transformers multiplies cosine and sine by attention_factor, or 0.1 ln(factor) + 1 without one;
// GGUF's factor stands beside the latter.
static int read_yarn(rope *r, hf_config *c, hf_head *h, err *e) {
    static const char why[] = "this is not supported";
    double attention = 0, fast = 32, slow = 1;
    bool truncate = true;
    if (read_factor(r, c, h, e) ||
        json_field_number(&r->fields, "attention_factor", 0.01, 100, &attention, e) ||
        json_field_number(&r->fields, "beta_fast", 0, 1e6, &fast, e) ||
        json_field_number(&r->fields, "beta_slow", 0, 1e6, &slow, e) ||
        json_field_bool(&r->fields, "truncate", &truncate, e))
        return -1;
    if (!truncate)
        return json_field_unsupported(&r->fields, "truncate", why, e);
    if (json_field(&r->fields, "mscale") || json_field(&r->fields, "mscale_all_dim"))
        return json_field_unsupported(&r->fields, "mscale", why, e);
    put_number(h, c, "rope.scaling.yarn_beta_fast", fast);
    put_number(h, c, "rope.scaling.yarn_beta_slow", slow);
    if (attention > 0)
        put_number(h, c, "rope.scaling.attn_factor", attention / (0.1 * log(r->factor) + 1));
    if ((double)r->original * r->factor > (double)r->context)
        r->context = (int64_t)((double)r->original * r->factor);
    return 0;
}

// Wavelengths longer than the original context's part are stretched by the factor, short ones stay,
// those between are blended (as transformers' _compute_llama3_parameters).
static int read_llama3(const rope *r, hf_config *c, err *e) {
    double low = 0, high = 0;
    if (json_field_number(&r->fields, "low_freq_factor", 1e-6, 1e6, &low, e) ||
        json_field_number(&r->fields, "high_freq_factor", 1e-6, 1e6, &high, e))
        return -1;
    if (r->factor == 0 || low == 0 || high == 0)
        return json_field_missing(&r->fields,
                                  r->factor == 0 ? "factor"
                                  : low == 0     ? "low_freq_factor"
                                                 : "high_freq_factor",
                                  e);
    if (!(high > low))
        return json_field_unsupported(&r->fields, "high_freq_factor",
                                      "it must be above low_freq_factor", e);
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        double wavelength = 2 * M_PI * pow(r->theta, 2.0 * (double)i / (double)c->head_dim);
        double turns = (double)r->original / wavelength;
        double smooth = fmin(fmax((turns - low) / (high - low), 0), 1);
        c->divisors[i] = (float)(1 / ((1 - smooth) / r->factor + smooth));
    }
    c->llama3 = true;
    return 0;
}

static int read_scaling(rope *r, hf_config *c, hf_head *h, err *e) {
    if (!r->type || !strcmp(r->type, "default"))
        return 0;
    if (!strcmp(r->type, "llama3"))
        return read_llama3(r, c, e);
    char key[96];
    put_arch_key(key, sizeof key, c, "rope.scaling.type");
    if (!strcmp(r->type, "linear")) {
        hf_put_text(h, key, "linear");
        return read_factor(r, c, h, e);
    }
    if (!strcmp(r->type, "yarn")) {
        hf_put_text(h, key, "yarn");
        return read_yarn(r, c, h, e);
    }
    return json_field_unsupported(&r->fields,
                                  json_field(&r->fields, "rope_type") ? "rope_type" : "type",
                                  "default, linear, yarn and llama3 are supported", e);
}

static int read_rope(const json_fields *f, hf_config *c, hf_head *h, err *e) {
    bool newer = json_field(f, "rope_parameters") != NULL;
    const char *name = newer ? "rope_parameters" : "rope_scaling";
    rope r = {.fields = {CONFIG, newer ? "rope_parameters." : "rope_scaling.", json_field(f, name)},
              .theta = 10000};
    if (r.fields.object && !json_is_object(r.fields.object))
        return json_field_unsupported(f, name, "it must be an object", e);
    json_t *one = json_integer(1);
    int rc =
        json_field_must_be(&r.fields, "partial_rotary_factor", one, "this is not supported", e);
    json_decref(one);
    if (rc || json_field_int(f, "max_position_embeddings", 1, 1 << 24, &r.context, e))
        return -1;
    if (!r.context)
        return json_field_missing(f, "max_position_embeddings", e);
    r.original = r.context;
    if (json_field_number(f, "rope_theta", 1, 1e12, &r.theta, e) ||
        json_field_number(&r.fields, "rope_theta", 1, 1e12, &r.theta, e) ||
        json_field_text(&r.fields, "type", &r.type, e) ||
        json_field_text(&r.fields, "rope_type", &r.type, e) ||
        json_field_number(&r.fields, "factor", 1, 1024, &r.factor, e) ||
        json_field_int(f, "original_max_position_embeddings", 1, 1 << 24, &r.original, e) ||
        json_field_int(&r.fields, "original_max_position_embeddings", 1, 1 << 24, &r.original, e) ||
        read_scaling(&r, c, h, e))
        return -1;
    put_number(h, c, "rope.freq_base", r.theta);
    put_int(h, c, "context_length", r.context);
    return 0;
}

// ---- what ends an answer

static int add_ends(const json_fields *f, hf_config *c, err *e) {
    const json_t *v = json_field(f, "eos_token_id");
    size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= c->n_vocab)
            return json_field_unsupported(f, "eos_token_id", "no token of the vocabulary", e);
        if (c->n_ends == HF_MAX_ENDS)
            return json_field_unsupported(f, "eos_token_id", "these are too many", e);
        c->ends[c->n_ends++] = json_integer_value(id);
    }
    return 0;
}

static int read_generation(const char *directory, hf_config *c, err *e) {
    json_t *o = NULL;
    if (json_file_read(directory, "generation_config.json", MAX_CONFIG_BYTES, false,
                       JSON_NUMBERS_EXACT, &o, e))
        return -1;
    json_fields f = {"generation_config.json", "", o};
    int rc = o ? add_ends(&f, c, e) : 0;
    json_decref(o);
    return rc;
}

// ---- quantisation: AWQ's and GPTQ's 4-bit words

static int check_awq(const json_fields *q, hf_config *c, err *e) {
    const char *version = "gemm";
    bool zero_point = true;
    if (json_field_text(q, "version", &version, e) ||
        json_field_bool(q, "zero_point", &zero_point, e))
        return -1;
    if (strcasecmp(version, "gemm"))
        return json_field_unsupported(q, "version", "gemm is supported", e);
    if (!zero_point)
        return json_field_unsupported(q, "zero_point", "true is supported", e);
    c->quant = HF_AWQ;
    return 0;
}

static int check_gptq(const json_fields *q, hf_config *c, err *e) {
    const char *format = "gptq", *words = "int32";
    bool marlin = false;
    if (json_field_text(q, "checkpoint_format", &format, e) ||
        json_field_text(q, "pack_dtype", &words, e) ||
        json_field_bool(q, "is_marlin_format", &marlin, e))
        return -1;
    if (strcmp(format, "gptq") && strcmp(format, "gptq_v2"))
        return json_field_unsupported(q, "checkpoint_format", "gptq and gptq_v2 are supported", e);
    if (strcmp(words, "int32"))
        return json_field_unsupported(q, "pack_dtype", "int32 is supported", e);
    if (marlin)
        return json_field_unsupported(q, "is_marlin_format", "false is supported", e);
    if (json_object_size(json_field(q, "dynamic")) > 0)
        return json_field_unsupported(q, "dynamic", "one form for all layers is supported", e);
    c->quant = strcmp(format, "gptq") ? HF_GPTQ_V2 : HF_GPTQ_V1;
    return 0;
}

static int read_quantization(const json_fields *f, hf_config *c, err *e) {
    json_fields q = {CONFIG, "quantization_config.", json_field(f, "quantization_config")};
    const char *method = "";
    int64_t bits = 0, group = 0;
    if (!q.object)
        return 0;
    if (json_field_text(&q, "quant_method", &method, e))
        return -1;
    if (strcmp(method, "awq") && strcmp(method, "gptq"))
        return json_field_unsupported(&q, "quant_method", "awq and gptq are supported", e);
    const char *bits_key = json_field(&q, "w_bit") ? "w_bit" : "bits";
    const char *group_key = json_field(&q, "q_group_size") ? "q_group_size" : "group_size";
    if (json_field_int(&q, bits_key, 1, 64, &bits, e) ||
        json_field_int(&q, group_key, -1, 1 << 20, &group, e))
        return -1;
    if (bits != 4)
        return json_field_unsupported(&q, bits_key, "4 is supported", e);
    if (group != -1 && (group < 32 || group % 32))
        return json_field_unsupported(&q, group_key, "-1 and multiples of 32 are supported", e);
    c->group_size = group;
    return strcmp(method, "awq") ? check_gptq(&q, c, e) : check_awq(&q, c, e);
}

static int read_rest(const json_fields *f, hf_config *c, hf_head *h, err *e) {
    double eps = 1e-6; // what each of these families takes without a word
    int64_t window = 0;
    if (json_field_number(f, "rms_norm_eps", 1e-12, 0.1, &eps, e) ||
        json_field_bool(f, "tie_word_embeddings", &c->tied, e))
        return -1;
    put_number(h, c, "attention.layer_norm_rms_epsilon", eps);
    if (!json_field(f, "use_sliding_window")) { // there it is off: check_harmless
        if (json_field_int(f, "sliding_window", 1, INT32_MAX / 2, &window, e))
            return -1;
        put_int(h, c, "attention.sliding_window", window);
    }
    hf_put_bool(h, "tiergate.rope_pairs", false);
    return add_ends(f, c, e);
}

int hf_read_config(const char *directory, hf_config *c, hf_head *h, err *e) {
    json_t *o = NULL;
    if (json_file_read(directory, CONFIG, MAX_CONFIG_BYTES, true, JSON_NUMBERS_EXACT, &o, e))
        return -1;
    json_fields f = {CONFIG, "", o};
    int rc = -1;
    if (read_kind(&f, c, e) || check_harmless(&f, e))
        goto done;
    hf_put_text(h, "general.architecture", c->arch);
    rc = read_sizes(&f, c, h, e) || read_rope(&f, c, h, e) || read_rest(&f, c, h, e) ||
                 read_quantization(&f, c, e) || read_generation(directory, c, e)
             ? -1
             : 0;
done:
    json_decref(o);
    return rc;
}
