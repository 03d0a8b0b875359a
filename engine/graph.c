// One pass of the model over a batch: embedding, layers, final norm; the head apart, so that it can
// be run in slices. The residual stream x is updated by rmsnorm, which adds the previous projection
// first. In the last layer everything past the KV write is done for the kept rows only. Owns the
// activations; the engine's thread. Does not sample and does not know requests.
#include "engine/graph.h"
#include "engine/rope.h"
#include <stdlib.h>
#include <string.h>

struct graph {
    const model_shape *s;
    const weights *w;
    const kv_pool *kv;
    ops *o;
    int max_rows, qkv_width, q_width;
    float *inv_freq;
    float attn_scale;
    float *x;       // [max_rows, dim] residual stream
    float *norm;    // [max_rows + extra, dim]
    float *qkv;     // [max_rows, qkv_width]
    float *attn;    // [max_rows, q_width]
    float *out;     // [max_rows, dim] a projection not yet added to x
    float *gate_up; // [max_rows, 2 intermediate]
    float *act;     // [max_rows, intermediate]
    lora_room room; // NULLs until a row has an adapter
};

static float *new_rows(int n_rows, int width) {
    void *p = NULL;
    size_t bytes = (size_t)n_rows * (size_t)width * sizeof(float);
    if (posix_memalign(&p, 64, bytes))
        fatal("out of memory: %zu bytes of activations", bytes);
    memset(p, 0, bytes);
    return p;
}

graph *graph_open(const model *m, const weights *w, const kv_pool *kv, ops *o, int max_rows,
                  int extra_hidden) {
    const model_shape *s = model_get_shape(m);
    graph *g = calloc(1, sizeof *g);
    if (!g)
        fatal("out of memory");
    g->s = s;
    g->w = w;
    g->kv = kv;
    g->o = o;
    g->max_rows = max_rows;
    g->q_width = s->n_heads * s->head_dim;
    g->qkv_width = g->q_width + 2 * s->n_kv_heads * s->head_dim;
    g->inv_freq = new_rows(1, s->head_dim);
    rope_frequencies(s, model_gguf(m), g->inv_freq, &g->attn_scale);
    g->x = new_rows(max_rows, s->dim);
    g->norm = new_rows(max_rows + extra_hidden, s->dim);
    g->qkv = new_rows(max_rows, g->qkv_width);
    g->attn = new_rows(max_rows, g->q_width);
    g->out = new_rows(max_rows, s->dim);
    g->gate_up = new_rows(max_rows, 2 * s->intermediate);
    g->act = new_rows(max_rows, s->intermediate);
    return g;
}

void graph_close(graph *g) {
    if (!g)
        return;
    free(g->inv_freq);
    free(g->x);
    free(g->norm);
    free(g->qkv);
    free(g->attn);
    free(g->out);
    free(g->gate_up);
    free(g->act);
    free(g->room.low);
    free(g->room.delta);
    free(g);
}

// The memory that adapters need, taken with the first batch that has one.
static void open_room(graph *g) {
    const model_shape *s = g->s;
    int width = s->intermediate > g->q_width ? s->intermediate : g->q_width;
    g->room.low = new_rows(g->max_rows, 3 * LORA_MOST_RANK);
    g->room.delta = new_rows(g->max_rows, width > s->dim ? width : s->dim);
}

static void norm_rows(graph *g, const float *add, const float *gain, int n_rows) {
    rmsnorm_args a = {.x = g->x,
                      .add = add,
                      .gain = gain,
                      .y = g->norm,
                      .n_rows = n_rows,
                      .dim = g->s->dim,
                      .eps = g->s->rms_eps};
    g->o->rmsnorm(g->o, &a);
}

static void matmul_rows(graph *g, const weight *w, const float *bias, const float *x, int n_in,
                        float *y, int n_out, int n_rows) {
    matmul_args a = {.w = w,
                     .x = x,
                     .y = y,
                     .bias = bias,
                     .n_rows = n_rows,
                     .x_stride = n_in,
                     .y_stride = n_out};
    g->o->matmul(g->o, &a);
}

// What the adapters of the rows add to the product of the group that lies `at` in a layer.
static void add_loras(graph *g, int layer, size_t at, const lora_span *spans, int n_spans,
                      const float *x, int n_in, float *y, int n_out) {
    for (int i = 0; i < n_spans; i++) {
        const lora_span *s = &spans[i];
        const void *group = (const char *)&s->l->layers[layer] + at;
        lora_add(group, g->o, &g->room, x + (size_t)s->row * (size_t)n_in, n_in,
                 y + (size_t)s->row * (size_t)n_out, n_out, s->n_rows);
    }
}

static void write_kv(graph *g, int layer, const graph_batch *b) {
    const layer_weights *w = &g->w->layers[layer];
    rope_kv_args a = {.qkv = g->qkv,
                      .stride = g->qkv_width,
                      .n_heads = g->s->n_heads,
                      .interleaved = g->s->rope_pairs,
                      .inv_freq = g->inv_freq,
                      .attn_scale = g->attn_scale,
                      .q_gain = w->q_norm,
                      .k_gain = w->k_norm,
                      .eps = g->s->rms_eps,
                      .kv = kv_pool_layer(g->kv, layer),
                      .spans = b->spans,
                      .n_spans = b->n_spans};
    g->o->rope_kv(g->o, &a);
}

static void attend(graph *g, int layer, const seq_span *spans, int n_spans) {
    attention_args a = {.q = g->qkv,
                        .y = g->attn,
                        .q_stride = g->qkv_width,
                        .n_heads = g->s->n_heads,
                        .kv = kv_pool_layer(g->kv, layer),
                        .spans = spans,
                        .n_spans = n_spans};
    g->o->attention(g->o, &a);
}

// Moves the kept rows of x and qkv to the front; ascending, so none is overwritten before it moved.
static void keep_rows(graph *g, const graph_batch *b) {
    size_t dim = (size_t)g->s->dim, qkv = (size_t)g->qkv_width;
    for (int i = 0; i < b->n_keep; i++) {
        size_t to = (size_t)i, from = (size_t)b->keep[i];
        memmove(g->x + to * dim, g->x + from * dim, dim * sizeof *g->x);
        memmove(g->qkv + to * qkv, g->qkv + from * qkv, qkv * sizeof *g->qkv);
    }
}

static void feed_forward(graph *g, int layer, int n_rows, const lora_span *loras, int n_loras) {
    const layer_weights *w = &g->w->layers[layer];
    int width = g->s->intermediate;
    norm_rows(g, g->out, w->ffn_norm, n_rows);
    matmul_rows(g, w->gate_up, NULL, g->norm, g->s->dim, g->gate_up, 2 * width, n_rows);
    add_loras(g, layer, offsetof(lora_layer, gate_up), loras, n_loras, g->norm, g->s->dim,
              g->gate_up, 2 * width);
    swiglu_args a = {.gate_up = g->gate_up, .y = g->act, .n_rows = n_rows, .width = width};
    g->o->swiglu(g->o, &a);
    matmul_rows(g, w->down, NULL, g->act, width, g->out, g->s->dim, n_rows);
    add_loras(g, layer, offsetof(lora_layer, down), loras, n_loras, g->act, width, g->out,
              g->s->dim);
}

static void run_layer(graph *g, int layer, const graph_batch *b) {
    const layer_weights *w = &g->w->layers[layer];
    bool last = layer == g->s->n_layers - 1;
    norm_rows(g, layer == 0 ? NULL : g->out, w->attn_norm, b->n_rows);
    matmul_rows(g, w->qkv, w->qkv_bias, g->norm, g->s->dim, g->qkv, g->qkv_width, b->n_rows);
    add_loras(g, layer, offsetof(lora_layer, qkv), b->loras, b->n_loras, g->norm, g->s->dim, g->qkv,
              g->qkv_width);
    write_kv(g, layer, b);
    if (last && b->n_keep == 0)
        return;
    if (last)
        keep_rows(g, b);
    attend(g, layer, last ? b->tails : b->spans, last ? b->n_tails : b->n_spans);
    int n_rows = last ? b->n_keep : b->n_rows, n_loras = last ? b->n_kept_loras : b->n_loras;
    const lora_span *loras = last ? b->kept_loras : b->loras;
    matmul_rows(g, w->attn_out, NULL, g->attn, g->q_width, g->out, g->s->dim, n_rows);
    add_loras(g, layer, offsetof(lora_layer, attn_out), loras, n_loras, g->attn, g->q_width, g->out,
              g->s->dim);
    feed_forward(g, layer, n_rows, loras, n_loras);
}

float *graph_forward(graph *g, const graph_batch *b) {
    embed_args a = {
        .table = g->w->embedding, .ids = b->ids, .y = g->x, .n_rows = b->n_rows, .scale = 1};
    g->o->embed(g->o, &a);
    if (b->n_loras && !g->room.low)
        open_room(g);
    for (int i = 0; i < g->s->n_layers; i++)
        run_layer(g, i, b);
    if (b->n_keep > 0)
        norm_rows(g, g->out, g->w->output_norm, b->n_keep);
    return g->norm;
}

void graph_head(graph *g, const float *hidden, int n_rows, float *logits) {
    matmul_rows(g, g->w->head, NULL, hidden, g->s->dim, logits, g->s->n_vocab, n_rows);
}
