// Rotary positions, the paged cache and causal attention of the reference backend: one query, one
// head, one key at a time, in double. Reads and writes pages that the engine owns. Every cache type
// is accepted, because tests compare backends on the same cache.
#include "kernels/ref/ref.h"
#include "kernels/half.h"
#include "kernels/kv_index.h"
#include <math.h>

static double cache_get(const void *cache, kv_type type, size_t i) {
    switch (type) {
    case KV_Q8:
        return ((const int8_t *)cache)[i];
    case KV_F32:
        return ((const float *)cache)[i];
    case KV_F16:
        return f16_to_f32(((const uint16_t *)cache)[i]);
    default:
        return bf16_to_f32(((const uint16_t *)cache)[i]);
    }
}

// What cache_get's values of a position are multiplied by.
static double cache_scale(const kv_layer *kv, const void *cache, size_t scale_at) {
    return kv->type == KV_Q8 ? bf16_to_f32(((const uint16_t *)cache)[scale_at]) : 1;
}

static void put_bytes(int8_t *to, size_t stride, uint16_t *scale, const float *x, int n) {
    float largest = 0, bad = 0; // bad: NaN when any is not finite
    for (int d = 0; d < n; d++) {
        largest = fmaxf(largest, fabsf(x[d]));
        bad += x[d] * 0;
    }
    *scale = f32_to_bf16(largest / 127 + bad);
    float s = bf16_to_f32(*scale), inverse = s > 1e-30f ? 1 / s : 0;
    for (int d = 0; d < n; d++)
        to[(size_t)d * stride] = (int8_t)(inverse > 0 ? nearbyintf(x[d] * inverse) : 0);
}

// A key or a value: its dimensions stand `stride` values apart.
static void cache_put(const kv_layer *kv, void *cache, size_t at, size_t stride, size_t scale_at,
                      const float *x) {
    if (kv->type == KV_Q8)
        put_bytes((int8_t *)cache + at, stride, (uint16_t *)cache + scale_at, x, kv->head_dim);
    else
        for (int d = 0; d < kv->head_dim; d++, at += stride)
            if (kv->type == KV_F32)
                ((float *)cache)[at] = x[d];
            else
                ((uint16_t *)cache)[at] = kv->type == KV_F16 ? f32_to_f16(x[d]) : f32_to_bf16(x[d]);
}

static void rotate(const rope_kv_args *a, float *head, int position) {
    int half = a->kv->head_dim / 2;
    for (int i = 0; i < half; i++) {
        double angle = (double)position * a->inv_freq[i];
        double c = cos(angle) * a->attn_scale, s = sin(angle) * a->attn_scale;
        float *p = a->interleaved ? head + 2 * i : head + i, *q = a->interleaved ? p + 1 : p + half;
        double x = *p, y = *q;
        *p = (float)(x * c - y * s);
        *q = (float)(x * s + y * c);
    }
}

static void rope_row(const rope_kv_args *a, const seq_span *s, int i) {
    const kv_layer *kv = a->kv;
    int position = s->first + i, dim = kv->head_dim;
    float *row = a->qkv + (s->row + i) * a->stride;
    for (int h = 0; h < a->n_heads + kv->n_kv_heads; h++) {
        const float *gain = h < a->n_heads ? a->q_gain : a->k_gain;
        if (gain)
            ref_norm_row(row + h * dim, gain, row + h * dim, dim, a->eps);
        rotate(a, row + h * dim, position);
    }
    const float *k = row + a->n_heads * dim, *v = k + kv->n_kv_heads * dim;
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t scale_at = kv_scale_index(kv, s, h, position);
        cache_put(kv, kv->k, kv_key_index(kv, s, h, position), (size_t)kv->page_tokens, scale_at,
                  k + h * dim);
        cache_put(kv, kv->v, kv_value_index(kv, s, h, position), 1, scale_at, v + h * dim);
    }
}

void ref_rope_kv(ops *o, const rope_kv_args *a) {
    (void)o;
    for (int n = 0; n < a->n_spans; n++)
        for (int i = 0; i < a->spans[n].n_rows; i++)
            rope_row(a, &a->spans[n], i);
}

static double score(const attention_args *a, const seq_span *s, const float *q, int kv_head,
                    int key) {
    size_t at = kv_key_index(a->kv, s, kv_head, key);
    double sum = 0;
    for (int d = 0; d < a->kv->head_dim; d++)
        sum += q[d] * cache_get(a->kv->k, a->kv->type, at + (size_t)(d * a->kv->page_tokens));
    return sum * cache_scale(a->kv, a->kv->k, kv_scale_index(a->kv, s, kv_head, key)) /
           sqrt(a->kv->head_dim);
}

// One query head at one position. Two passes over the keys: the largest score, then the weighted
// mean.
static void attend(const attention_args *a, const seq_span *s, int i, int head) {
    const kv_layer *kv = a->kv;
    int dim = kv->head_dim, kv_head = head / (a->n_heads / kv->n_kv_heads), keys = s->first + i + 1;
    const float *q = a->q + (s->row + i) * a->q_stride + head * dim;
    float *y = a->y + ((int64_t)(s->row + i) * a->n_heads + head) * dim;
    double largest = -INFINITY, total = 0, sum[dim];
    for (int d = 0; d < dim; d++)
        sum[d] = 0;
    for (int key = 0; key < keys; key++)
        largest = fmax(largest, score(a, s, q, kv_head, key));
    for (int key = 0; key < keys; key++) {
        double p = exp(score(a, s, q, kv_head, key) - largest);
        size_t at = kv_value_index(kv, s, kv_head, key);
        total += p;
        p *= cache_scale(kv, kv->v, kv_scale_index(kv, s, kv_head, key));
        for (int d = 0; d < dim; d++)
            sum[d] += p * cache_get(kv->v, kv->type, at + (size_t)d);
    }
    for (int d = 0; d < dim; d++)
        y[d] = (float)(sum[d] / total);
}

static void attention_part(void *ctx, int part, int n_parts) {
    const attention_args *a = ctx;
    for (int n = 0; n < a->n_spans; n++)
        for (int j = part; j < a->spans[n].n_rows * a->n_heads; j += n_parts)
            attend(a, &a->spans[n], j / a->n_heads, j % a->n_heads);
}

void ref_attention(ops *o, const attention_args *a) {
    team_run(((ref *)o)->team, attention_part, (void *)a);
}
