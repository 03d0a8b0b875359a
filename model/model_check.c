// Holds a model file's tensor table to its architecture, and writes the summary that people read.
// Owns nothing between calls; any thread. Reads no weights except the few numbers of
// rope_freqs.weight, which are configuration in the shape of a tensor.
#include "model/model.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct checker {
    const gguf *g;
    const model_shape *s;
    bool *known; // [n_tensors]: belongs to the architecture
    char name[64];
    err *e;
} checker;

bool model_tensor_type_supported(uint32_t type) {
    static const char *const names[] = {"F32",  "F16",  "BF16", "Q4_0", "Q4_1", "Q5_0",
                                        "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "INT4"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(gguf_tensor_type_name(type), names[i]) == 0)
            return true;
    return false;
}

// Finds tensor k->name and marks it as known; NULL with an error when it is missing.
static const gguf_tensor *claim(checker *k) {
    const gguf_tensor *t = gguf_find(k->g, k->name);
    if (!t) {
        err_set(k->e, ERR_FORMAT, NULL, "tensor '%s' is missing", k->name);
        return NULL;
    }
    k->known[t - gguf_tensor_at(k->g, 0)] = true;
    return t;
}

static void set_name(checker *k, int layer, const char *name) {
    if (layer < 0)
        snprintf(k->name, sizeof k->name, "%s", name);
    else
        snprintf(k->name, sizeof k->name, "blk.%d.%s", layer, name);
}

static int check_vector(checker *k, int layer, const char *name, int n) {
    set_name(k, layer, name);
    const gguf_tensor *t = claim(k);
    if (!t)
        return -1;
    if (t->n_dims != 1 || t->dims[0] != (uint64_t)n)
        return err_set(k->e, ERR_FORMAT, NULL,
                       "tensor '%s' has %d dimension(s), the first %llu; expected is [%d]", k->name,
                       t->n_dims, (unsigned long long)t->dims[0], n);
    const char *type = gguf_tensor_type_name(t->type);
    if (strcmp(type, "F32") && strcmp(type, "F16") && strcmp(type, "BF16"))
        return err_set(k->e, ERR_UNSUPPORTED, NULL,
                       "tensor '%s' is %s; a vector must be F32, F16 or BF16", k->name, type);
    return 0;
}

static int check_matrix(checker *k, int layer, const char *name, int n_in, int n_out) {
    set_name(k, layer, name);
    const gguf_tensor *t = claim(k);
    if (!t)
        return -1;
    if (t->n_dims != 2 || t->dims[0] != (uint64_t)n_in || t->dims[1] != (uint64_t)n_out)
        return err_set(k->e, ERR_FORMAT, NULL,
                       "tensor '%s' is [%llu, %llu] in %d dimension(s); expected is [%d, %d]",
                       k->name, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                       t->n_dims, n_in, n_out);
    if (!model_tensor_type_supported(t->type))
        return err_set(
            k->e, ERR_UNSUPPORTED, NULL,
            "tensor '%s' is %s; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K "
            "and Q6_K are supported",
            k->name, gguf_tensor_type_name(t->type));
    return 0;
}

static int check_rope_freqs(checker *k) {
    int n = k->s->head_dim / 2;
    if (k->s->scaling != ROPE_LLAMA3)
        return 0;
    if (check_vector(k, -1, "rope_freqs.weight", n))
        return -1;
    const gguf_tensor *t = gguf_find(k->g, k->name);
    const uint8_t *p = t->data;
    if (strcmp(gguf_tensor_type_name(t->type), "F32"))
        return err_set(k->e, ERR_UNSUPPORTED, NULL, "tensor '%s' is %s; it must be F32", k->name,
                       gguf_tensor_type_name(t->type));
    for (int i = 0; i < n; i++) {
        float v;
        memcpy(&v, p + (size_t)i * sizeof v, sizeof v);
        if (!(v > 0 && v <= 1e6f))
            return err_set(k->e, ERR_FORMAT, NULL,
                           "element %d of tensor '%s' is %g, which no frequency can be divided by",
                           i, k->name, (double)v);
    }
    return 0;
}

static int check_layer(checker *k, int i) {
    const model_shape *s = k->s;
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    if (check_vector(k, i, "attn_norm.weight", s->dim) ||
        check_matrix(k, i, "attn_q.weight", s->dim, q) ||
        check_matrix(k, i, "attn_k.weight", s->dim, kv) ||
        check_matrix(k, i, "attn_v.weight", s->dim, kv) ||
        check_matrix(k, i, "attn_output.weight", q, s->dim) ||
        check_vector(k, i, "ffn_norm.weight", s->dim) ||
        check_matrix(k, i, "ffn_gate.weight", s->dim, s->intermediate) ||
        check_matrix(k, i, "ffn_up.weight", s->dim, s->intermediate) ||
        check_matrix(k, i, "ffn_down.weight", s->intermediate, s->dim))
        return -1;
    if (s->qkv_bias &&
        (check_vector(k, i, "attn_q.bias", q) || check_vector(k, i, "attn_k.bias", kv) ||
         check_vector(k, i, "attn_v.bias", kv)))
        return -1;
    if (s->arch == ARCH_QWEN3 && (check_vector(k, i, "attn_q_norm.weight", s->head_dim) ||
                                  check_vector(k, i, "attn_k_norm.weight", s->head_dim)))
        return -1;
    return 0;
}

static int check_all(checker *k) {
    const model_shape *s = k->s;
    if (check_matrix(k, -1, "token_embd.weight", s->dim, s->n_vocab) ||
        check_vector(k, -1, "output_norm.weight", s->dim) ||
        (!s->tied_head && check_matrix(k, -1, "output.weight", s->dim, s->n_vocab)) ||
        check_rope_freqs(k))
        return -1;
    for (int i = 0; i < s->n_layers; i++)
        if (check_layer(k, i))
            return -1;
    for (size_t i = 0; i < gguf_n_tensors(k->g); i++) {
        const gguf_tensor *t = gguf_tensor_at(k->g, i);
        if (!k->known[i])
            return err_set(k->e, ERR_UNSUPPORTED, NULL,
                           "tensor '%.*s' does not belong to a %s model of %d layers",
                           (int)t->name.n, t->name.p, model_arch_name(s->arch), s->n_layers);
    }
    return 0;
}

int model_check_tensors(const gguf *g, const model_shape *s, err *e) {
    if (gguf_n_tensors(g) == 0)
        return err_set(e, ERR_FORMAT, NULL, "the file has no tensors: a vocabulary, not a model");
    checker k = {.g = g, .s = s, .e = e, .known = calloc(gguf_n_tensors(g), sizeof(bool))};
    if (!k.known)
        fatal("out of memory");
    int rc = check_all(&k);
    free(k.known);
    return rc;
}

static void line(buf *b, const char *label, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void line(buf *b, const char *label, const char *format, ...) {
    va_list args;
    va_start(args, format);
    buf_printf(b, "%-15s", label);
    buf_vprintf(b, format, args);
    buf_puts(b, "\n");
    va_end(args);
}

static uint64_t n_values(const gguf_tensor *t) {
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

#define MILLION 1000000u
#define BILLION 1000000000u
#define N_TYPES 64 // more than there are tensor types

static void summarize_weights(buf *b, const gguf *g) {
    uint64_t values[N_TYPES] = {0}, all = 0;
    char mix[256];
    size_t used = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        all += n_values(t);
        values[t->type % N_TYPES] += n_values(t);
    }
    for (;;) { // the most used type first
        uint32_t top = 0;
        for (uint32_t t = 1; t < N_TYPES; t++)
            top = values[t] > values[top] ? t : top;
        if (values[top] == 0 || used >= sizeof mix)
            break;
        used +=
            (size_t)snprintf(mix + used, sizeof mix - used, "%s%s %.1f%%", used ? ", " : "",
                             gguf_tensor_type_name(top), 100.0 * (double)values[top] / (double)all);
        values[top] = 0;
    }
    line(b, "parameters", "%.2f %s",
         (double)all / (all < MILLION   ? 1e3
                        : all < BILLION ? 1e6
                                        : 1e9),
         all < MILLION   ? "thousand"
         : all < BILLION ? "million"
                         : "billion");
    line(b, "weights", "%s", mix);
}

static void summarize_shape(buf *b, const model_shape *s) {
    static const char *const scalings[] = {"", ", linear scaling", ", YaRN", ", Llama 3 scaling"};
    line(b, "architecture", "%s", model_arch_name(s->arch));
    line(b, "layers", "%d of width %d, feed-forward %d, %s head", s->n_layers, s->dim,
         s->intermediate, s->tied_head ? "tied" : "own");
    line(b, "attention", "%d query and %d KV heads of %d", s->n_heads, s->n_kv_heads, s->head_dim);
    line(b, "context", "%d tokens (RoPE base %g%s)", s->context, (double)s->rope_base,
         scalings[s->scaling]);
}

static void summarize_language(buf *b, const model *m) {
    const gguf *g = model_gguf(m);
    gguf_string kind = {"?", 1}, pre = {"default", 7};
    err e = {0};
    const chat_template *found = NULL;
    gguf_get_string(g, "tokenizer.ggml.model", &kind);
    gguf_get_string(g, "tokenizer.ggml.pre", &pre);
    line(b, "vocabulary", "%d tokens (%.*s, %.*s)", model_get_shape(m)->n_vocab, (int)kind.n,
         kind.p, (int)pre.n, pre.p);
    if (!gguf_has(g, "tokenizer.chat_template", NULL))
        line(b, "chat template", "none in the file");
    else if (template_detect(g, &found, &e))
        line(b, "chat template", "not recognised: %s", e.message);
    else
        line(b, "chat template", "%s", template_name(found));
    line(b, "fill-in-middle", "%s", model_fim(m) ? fim_name(model_fim(m)) : "none");
}

static void summarize_file(buf *b, const model *m) {
    const gguf *g = model_gguf(m);
    char format[32] = "safetensors";
    if (gguf_version(g) > 0)
        snprintf(format, sizeof format, "GGUF version %u", gguf_version(g));
    line(b, "file", "%llu bytes, %s, %zu tensors, revision %s",
         (unsigned long long)gguf_file_bytes(g), format, gguf_n_tensors(g), model_revision(m));
}

int model_check(const char *path, buf *summary, err *e) {
    model *m = NULL;
    if (model_open_parts(path, &m, e))
        return -1;
    line(summary, "name", "%s", model_file_name(m));
    summarize_shape(summary, model_get_shape(m));
    summarize_weights(summary, model_gguf(m));
    summarize_language(summary, m);
    summarize_file(summary, m);
    model_close(m);
    return 0;
}
