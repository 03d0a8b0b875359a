// From the tensors of a GGUF file to the backend's matrices. Owns what it packed; runs in the
// thread that opens the engine. Checks each tensor's shape again, so that a packer never reads past
// its bytes. Does not know how a backend stores a matrix.
#include "engine/weights.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct loader {
    const gguf *g;
    const model_shape *s;
    weights *w;
    void (*progress)(void *ctx, double fraction);
    void *progress_ctx;
    uint64_t done_bytes, all_bytes;
    err *e;
} loader;

typedef struct part { // one matrix of a stack
    const char *name;
    int n_out;
} part;

static uint64_t row_bytes(const gguf_tensor *t) {
    int n_values = 0, n_bytes = 0;
    if (!weight_type_block((weight_type)t->type, &n_values, &n_bytes) ||
        t->dims[0] % (uint64_t)n_values != 0)
        return 0;
    return t->dims[0] / (uint64_t)n_values * (uint64_t)n_bytes;
}

// NULL (with the error set) unless the tensor is there, has that shape and a type we know.
static const gguf_tensor *find(loader *l, const char *name, int n_in, int n_out) {
    const gguf_tensor *t = gguf_find(l->g, name);
    if (!t)
        err_set(l->e, ERR_FORMAT, NULL, "tensor %s is missing", name);
    else if (t->dims[0] != (uint64_t)n_in || t->dims[1] != (uint64_t)n_out || t->dims[2] != 1 ||
             t->dims[3] != 1)
        err_set(l->e, ERR_FORMAT, NULL, "tensor %s: shape [%llu, %llu] where [%d, %d] is expected",
                name, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1], n_in, n_out);
    else if (row_bytes(t) == 0)
        err_set(l->e, ERR_UNSUPPORTED, NULL, "tensor %s: type %u is not supported", name, t->type);
    else if (t->bytes < row_bytes(t) * (uint64_t)n_out)
        err_set(l->e, ERR_FORMAT, NULL, "tensor %s: %llu bytes are too few for its shape", name,
                (unsigned long long)t->bytes);
    else
        return t;
    return NULL;
}

static void report(loader *l, uint64_t bytes) {
    l->done_bytes += bytes;
    if (l->progress && l->all_bytes > 0)
        l->progress(l->progress_ctx, fmin(1, (double)l->done_bytes / (double)l->all_bytes));
}

static int layer_name(char *out, size_t n, int layer, const char *name) {
    return layer < 0 ? snprintf(out, n, "%s", name) : snprintf(out, n, "blk.%d.%s", layer, name);
}

// Of a tensor that is not in the file as we want it; lives until it is packed.
static void *make_data(const loader *l, const gguf_tensor *t) {
    void *p = malloc(t->bytes);
    if (!p)
        fatal("out of memory: %llu bytes of a matrix", (unsigned long long)t->bytes);
    gguf_load(l->g, t, p);
    return p;
}

// Stacks up to three matrices of n_in columns on top of each other; layer -1: names as they are.
static int pack(loader *l, int layer, const part *parts, int n, int n_in, weight **out) {
    char names[3][64];
    weight_source src[3];
    void *made[3] = {NULL};
    uint64_t bytes = 0;
    int rc = -1;
    for (int i = 0; i < n; i++) {
        layer_name(names[i], sizeof names[i], layer, parts[i].name);
        const gguf_tensor *t = find(l, names[i], n_in, parts[i].n_out);
        if (!t)
            goto done;
        if (!t->data)
            made[i] = make_data(l, t);
        src[i] = (weight_source){.name = names[i],
                                 .type = (weight_type)t->type,
                                 .data = t->data ? t->data : made[i],
                                 .n_out = parts[i].n_out,
                                 .n_in = n_in,
                                 .order = t->order};
        bytes += t->bytes;
    }
    if (l->w->o->weight_pack(l->w->o, src, n, out, l->e))
        goto done;
    l->w->bytes += l->w->o->weight_bytes(*out);
    report(l, bytes);
    rc = 0;
done:
    for (int i = 0; i < n; i++)
        free(made[i]);
    return rc;
}

static float *new_floats(loader *l, int n) {
    float *p = calloc((size_t)n, sizeof *p);
    if (!p)
        fatal("out of memory");
    l->w->bytes += (size_t)n * sizeof *p;
    return p;
}

static int read_floats(loader *l, int layer, const char *name, int n, float *out) {
    char full[64];
    layer_name(full, sizeof full, layer, name);
    const gguf_tensor *t = find(l, full, n, 1);
    if (!t)
        return -1;
    weight_dequantize((weight_type)t->type, t->data, out, n);
    for (int i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return err_set(l->e, ERR_FORMAT, NULL, "tensor %s: value %d is not finite", full, i);
    report(l, t->bytes);
    return 0;
}

static int load_floats(loader *l, int layer, const char *name, int n, float **out) {
    *out = new_floats(l, n);
    return read_floats(l, layer, name, n, *out);
}

static int load_bias(loader *l, int layer, const part *qkv, float **out) {
    if (!l->s->qkv_bias)
        return 0;
    static const char *const names[] = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
    *out = new_floats(l, qkv[0].n_out + qkv[1].n_out + qkv[2].n_out);
    for (int i = 0, at = 0; i < 3; at += qkv[i].n_out, i++)
        if (read_floats(l, layer, names[i], qkv[i].n_out, *out + at))
            return -1;
    return 0;
}

static int load_head_norms(loader *l, int layer, layer_weights *w) {
    if (l->s->arch != ARCH_QWEN3)
        return 0;
    return load_floats(l, layer, "attn_q_norm.weight", l->s->head_dim, &w->q_norm) ||
                   load_floats(l, layer, "attn_k_norm.weight", l->s->head_dim, &w->k_norm)
               ? -1
               : 0;
}

static int load_layer(loader *l, int i) {
    const model_shape *s = l->s;
    layer_weights *w = &l->w->layers[i];
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    const part qkv[] = {{"attn_q.weight", q}, {"attn_k.weight", kv}, {"attn_v.weight", kv}};
    const part attn_out[] = {{"attn_output.weight", s->dim}};
    const part gate_up[] = {{"ffn_gate.weight", s->intermediate},
                            {"ffn_up.weight", s->intermediate}};
    const part down[] = {{"ffn_down.weight", s->dim}};
    if (load_floats(l, i, "attn_norm.weight", s->dim, &w->attn_norm) ||
        load_bias(l, i, qkv, &w->qkv_bias) || load_head_norms(l, i, w) ||
        load_floats(l, i, "ffn_norm.weight", s->dim, &w->ffn_norm))
        return -1;
    if (pack(l, i, qkv, 3, s->dim, &w->qkv) || pack(l, i, attn_out, 1, q, &w->attn_out) ||
        pack(l, i, gate_up, 2, s->dim, &w->gate_up) ||
        pack(l, i, down, 1, s->intermediate, &w->down))
        return -1;
    return 0;
}

static int load_ends(loader *l) {
    const part embedding = {"token_embd.weight", l->s->n_vocab},
               head = {"output.weight", l->s->n_vocab};
    if (pack(l, -1, &embedding, 1, l->s->dim, &l->w->embedding) ||
        load_floats(l, -1, "output_norm.weight", l->s->dim, &l->w->output_norm))
        return -1;
    if (!l->s->tied_head)
        return pack(l, -1, &head, 1, l->s->dim, &l->w->head);
    l->w->head = l->w->embedding;
    return 0;
}

int weights_load(const model *m, ops *o, void (*progress)(void *ctx, double fraction), void *ctx,
                 weights **out, err *e) {
    loader l = {.g = model_gguf(m),
                .s = model_get_shape(m),
                .progress = progress,
                .progress_ctx = ctx,
                .e = e};
    for (size_t i = 0; i < gguf_n_tensors(l.g); i++)
        l.all_bytes += gguf_tensor_at(l.g, i)->bytes;
    l.w = calloc(1, sizeof *l.w);
    if (!l.w || !(l.w->layers = calloc((size_t)l.s->n_layers, sizeof *l.w->layers)))
        fatal("out of memory");
    l.w->o = o;
    l.w->n_layers = l.s->n_layers;
    int rc = load_ends(&l);
    for (int i = 0; i < l.s->n_layers && rc == 0; i++)
        rc = load_layer(&l, i);
    if (rc)
        weights_free(l.w);
    else
        *out = l.w;
    return rc;
}

static void free_matrix(ops *o, weight *w) {
    if (w)
        o->weight_free(o, w);
}

static void free_layer(ops *o, layer_weights *w) {
    free_matrix(o, w->qkv);
    free_matrix(o, w->attn_out);
    free_matrix(o, w->gate_up);
    free_matrix(o, w->down);
    free(w->attn_norm);
    free(w->ffn_norm);
    free(w->qkv_bias);
    free(w->q_norm);
    free(w->k_norm);
}

void weights_free(weights *w) {
    if (!w)
        return;
    for (int i = 0; i < w->n_layers; i++)
        free_layer(w->o, &w->layers[i]);
    if (w->head != w->embedding)
        free_matrix(w->o, w->head);
    free_matrix(w->o, w->embedding);
    free(w->output_norm);
    free(w->layers);
    free(w);
}
