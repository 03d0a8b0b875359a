// Loading and applying adapters. Shapes are checked against the model before anything is packed.
// Does not choose an adapter, nor where files lie.
#include "engine/lora.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct target { // one matrix that an adapter may adapt
    const char *name;
    int n_out;
    int paired_dim; // > 0: rows of heads of this many, in the file as RoPE's pairs, in the model
                    // not
} target;

typedef struct loader {
    const gguf *file;
    lora *l;
    double alpha;
    size_t n_used; // tensors
    err *e;
} loader;

static bool is_text(gguf_string s, const char *wanted) {
    return s.n == strlen(wanted) && !memcmp(s.p, wanted, s.n);
}

static int check_kind(loader *l, const model_shape *s) {
    gguf_string kind = {0}, arch = {0};
    static const char *const archs[] = {
        [ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};
    if (!gguf_get_string(l->file, "general.type", &kind) || !is_text(kind, "adapter"))
        return err_set(l->e, ERR_FORMAT, NULL, "general.type is not 'adapter'");
    if (!gguf_get_string(l->file, "adapter.type", &kind) || !is_text(kind, "lora"))
        return err_set(l->e, ERR_UNSUPPORTED, NULL, "adapter.type is not 'lora'");
    if (!gguf_get_string(l->file, "general.architecture", &arch) || !is_text(arch, archs[s->arch]))
        return err_set(l->e, ERR_INVALID, NULL,
                       "general.architecture is '%.*s', the model's is '%s'", (int)arch.n,
                       arch.n ? arch.p : "", archs[s->arch]);
    if (!gguf_get_f64(l->file, "adapter.lora.alpha", &l->alpha) || !isfinite(l->alpha))
        return err_set(l->e, ERR_FORMAT, NULL, "adapter.lora.alpha is missing or not finite");
    return 0;
}

// A tensor of two dimensions, its bytes whole; rank 0: any, up to LORA_MOST_RANK, in dims[which].
static int check_tensor(loader *l, const char *name, const gguf_tensor *t, uint64_t n_in,
                        uint64_t n_out) {
    int n_values = 0, n_bytes = 0;
    if (t->dims[0] != n_in || t->dims[1] != n_out || t->dims[2] != 1 || t->dims[3] != 1)
        return err_set(l->e, ERR_FORMAT, NULL,
                       "tensor %s: shape [%llu, %llu] where [%llu, %llu] is expected", name,
                       (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                       (unsigned long long)n_in, (unsigned long long)n_out);
    if (!weight_type_block((weight_type)t->type, &n_values, &n_bytes) ||
        n_in % (uint64_t)n_values ||
        t->bytes < n_in / (uint64_t)n_values * n_out * (uint64_t)n_bytes)
        return err_set(l->e, ERR_UNSUPPORTED, NULL, "tensor %s: type %s does not fit its rows",
                       name, gguf_tensor_type_name(t->type));
    return 0;
}

static weight_source source_of(const char *name, const gguf_tensor *t) {
    return (weight_source){.name = name,
                           .type = (weight_type)t->type,
                           .data = t->data,
                           .n_out = (int64_t)t->dims[1],
                           .n_in = (int64_t)t->dims[0]};
}

// The rows of each head with the pairs (2i, 2i + 1) as (i, i + dim / 2): GGUF stores Llama's q and
// k the one way, other files the other.
static void *unpair_rows(const weight_source *b, int dim) {
    int n_values = 0, n_bytes = 0;
    weight_type_block(b->type, &n_values, &n_bytes);
    size_t row = (size_t)(b->n_in / n_values) * (size_t)n_bytes;
    char *out = malloc((size_t)b->n_out * row);
    if (!out)
        fatal("out of memory");
    for (int64_t r = 0; r < b->n_out; r++) {
        int64_t head = r / dim * dim, at = r % dim,
                from = head + at % (dim / 2) * 2 + at / (dim / 2);
        memcpy(out + (size_t)r * row, (const char *)b->data + (size_t)from * row, row);
    }
    return out;
}

// Adds the part of target i to g and its A to *a; nothing when the file does not adapt it.
static int load_part(loader *l, int layer, const target *t, int n_in, int at, lora_group *g,
                     weight_source *a, char *name) {
    char name_b[64];
    snprintf(name, 64, "blk.%d.%s.lora_a", layer, t->name);
    snprintf(name_b, sizeof name_b, "blk.%d.%s.lora_b", layer, t->name);
    const gguf_tensor *ta = gguf_find(l->file, name), *tb = gguf_find(l->file, name_b);
    if (!ta && !tb)
        return 0;
    if (!ta || !tb)
        return err_set(l->e, ERR_FORMAT, NULL, "tensor %s is missing", ta ? name_b : name);
    uint64_t rank = ta->dims[1];
    if (rank < 1 || rank > LORA_MOST_RANK)
        return err_set(l->e, ERR_UNSUPPORTED, NULL, "tensor %s: rank %llu is not between 1 and %d",
                       name, (unsigned long long)rank, LORA_MOST_RANK);
    if (check_tensor(l, name, ta, (uint64_t)n_in, rank) ||
        check_tensor(l, name_b, tb, rank, (uint64_t)t->n_out))
        return -1;
    lora_part *p = &g->parts[g->n_parts];
    *p = (lora_part){
        .rank = (int)rank, .n_out = t->n_out, .at = at, .scale = (float)(l->alpha / (double)rank)};
    weight_source b = source_of(name_b, tb);
    void *unpaired = t->paired_dim ? unpair_rows(&b, t->paired_dim) : NULL;
    if (unpaired)
        b.data = unpaired;
    int rc = l->l->o->weight_pack_alone(l->l->o, &b, 1, &p->b, l->e);
    free(unpaired);
    if (rc)
        return -1;
    a[g->n_parts++] = source_of(name, ta);
    g->rank += p->rank;
    l->l->bytes += l->l->o->weight_bytes(p->b);
    l->n_used += 2;
    return 0;
}

static int load_group(loader *l, int layer, const target *targets, int n, int n_in, lora_group *g) {
    char names[3][64];
    weight_source a[3];
    for (int i = 0, at = 0; i < n; at += targets[i].n_out, i++)
        if (load_part(l, layer, &targets[i], n_in, at, g, a, names[g->n_parts]))
            return -1;
    if (g->n_parts == 0)
        return 0;
    if (l->l->o->weight_pack_alone(l->l->o, a, g->n_parts, &g->a, l->e))
        return -1;
    l->l->bytes += l->l->o->weight_bytes(g->a);
    return 0;
}

static int load_layer(loader *l, const model_shape *s, int i) {
    lora_layer *w = &l->l->layers[i];
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    int paired = s->arch == ARCH_LLAMA && !s->rope_pairs ? s->head_dim : 0;
    const target qkv[] = {
        {"attn_q.weight", q, paired}, {"attn_k.weight", kv, paired}, {"attn_v.weight", kv, 0}};
    const target attn_out[] = {{"attn_output.weight", s->dim, 0}};
    const target gate_up[] = {{"ffn_gate.weight", s->intermediate, 0},
                              {"ffn_up.weight", s->intermediate, 0}};
    const target down[] = {{"ffn_down.weight", s->dim, 0}};
    return load_group(l, i, qkv, 3, s->dim, &w->qkv) ||
                   load_group(l, i, attn_out, 1, q, &w->attn_out) ||
                   load_group(l, i, gate_up, 2, s->dim, &w->gate_up) ||
                   load_group(l, i, down, 1, s->intermediate, &w->down)
               ? -1
               : 0;
}

// Every tensor is one of those that load_layer looks for, else the answer would not be the
// adapter's.
static int check_all_used(loader *l, const model_shape *s) {
    if (l->n_used == gguf_n_tensors(l->file))
        return l->n_used ? 0 : err_set(l->e, ERR_FORMAT, NULL, "the file adapts nothing");
    static const char *const known[] = {"attn_q",   "attn_k",   "attn_v", "attn_output",
                                        "ffn_gate", "ffn_down", "ffn_up"};
    for (size_t i = 0; i < gguf_n_tensors(l->file); i++) {
        gguf_string name = gguf_tensor_at(l->file, i)->name;
        char text[80], kind[32] = "", tail[8] = "";
        int layer = -1, end = 0;
        bool is_known = false;
        snprintf(text, sizeof text, "%.*s", (int)name.n, name.p);
        if (sscanf(text, "blk.%d.%31[a-z_].weight.lora_%7[ab]%n", &layer, kind, tail, &end) == 3 &&
            !text[end] && layer >= 0 && layer < s->n_layers)
            for (size_t k = 0; k < sizeof known / sizeof *known; k++)
                is_known = is_known || !strcmp(kind, known[k]);
        if (!is_known)
            return err_set(l->e, ERR_UNSUPPORTED, NULL, "tensor %s: this cannot be adapted", text);
    }
    return err_set(l->e, ERR_FORMAT, NULL, "the file names a tensor twice");
}

int lora_load(const gguf *file, const model *m, ops *o, lora **out, err *e) {
    const model_shape *s = model_get_shape(m);
    loader l = {.file = file, .e = e};
    if (check_kind(&l, s))
        return -1;
    l.l = calloc(1, sizeof *l.l);
    if (!l.l || !(l.l->layers = calloc((size_t)s->n_layers, sizeof *l.l->layers)))
        fatal("out of memory");
    l.l->o = o;
    l.l->n_layers = s->n_layers;
    int rc = 0;
    for (int i = 0; i < s->n_layers && rc == 0; i++)
        rc = load_layer(&l, s, i);
    if (rc == 0)
        rc = check_all_used(&l, s);
    if (rc)
        lora_free(l.l);
    else
        *out = l.l;
    return rc;
}

static void free_group(ops *o, lora_group *g) {
    if (g->a)
        o->weight_free(o, g->a);
    for (int i = 0; i < g->n_parts; i++)
        if (g->parts[i].b)
            o->weight_free(o, g->parts[i].b);
}

void lora_free(lora *l) {
    if (!l)
        return;
    for (int i = 0; i < l->n_layers; i++) {
        free_group(l->o, &l->layers[i].qkv);
        free_group(l->o, &l->layers[i].attn_out);
        free_group(l->o, &l->layers[i].gate_up);
        free_group(l->o, &l->layers[i].down);
    }
    free(l->layers);
    free(l);
}

// ---- applying

typedef struct add_job {
    const float *delta;
    float *y;
    int64_t y_stride;
    int n_rows, n_out;
    float scale;
} add_job;

static void add_rows(void *ctx, int part, int n_parts) {
    const add_job *j = ctx;
    for (int r = part; r < j->n_rows; r += n_parts) {
        const float *delta = j->delta + (size_t)r * (size_t)j->n_out;
        float *y = j->y + r * j->y_stride;
        for (int i = 0; i < j->n_out; i++)
            y[i] += j->scale * delta[i];
    }
}

void lora_add(const lora_group *g, ops *o, const lora_room *room, const float *x, int64_t x_stride,
              float *y, int64_t y_stride, int n_rows) {
    if (!g->a)
        return;
    matmul_args low = {.w = g->a,
                       .x = x,
                       .y = room->low,
                       .n_rows = n_rows,
                       .x_stride = x_stride,
                       .y_stride = g->rank};
    o->matmul(o, &low);
    for (int i = 0, at = 0; i < g->n_parts; at += g->parts[i].rank, i++) {
        const lora_part *p = &g->parts[i];
        matmul_args high = {.w = p->b,
                            .x = room->low + at,
                            .y = room->delta,
                            .n_rows = n_rows,
                            .x_stride = g->rank,
                            .y_stride = p->n_out};
        o->matmul(o, &high);
        add_job j = {.delta = room->delta,
                     .y = y + p->at,
                     .y_stride = y_stride,
                     .n_rows = n_rows,
                     .n_out = p->n_out,
                     .scale = p->scale};
        if (n_rows > 1)
            o->parallel(o, add_rows, &j);
        else
            add_rows(&j, 0, 1);
    }
}
