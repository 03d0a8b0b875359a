// The operations that handle one row at a time, written once over v16 and compiled by avx2.c and
// avx512.c: norm, rotation with cache write, SwiGLU, quantisation of activations, and the
// exponential they and attention share. A row's bits depend on that row alone.
#ifndef KERNELS_CPU_ROWS_V16_H
#define KERNELS_CPU_ROWS_V16_H
#include "kernels/cpu/cpu.h"
#include "kernels/half.h"
#include "kernels/kv_index.h"
#include <math.h>

// e^x, relative error under 2e-7 (tested); 0 below -87.3, saturates above 88.3. Cephes' reduction:
// x = n ln 2 + r, degree 6 in r.
V16 v16 v16_exp(v16 x) {
    const v16 low = v16_set1(-87.3f);
    v16 y = v16_min(v16_max(x, low), v16_set1(88.3f));
    v16i n = v16_round(v16_mul(y, v16_set1(1.44269504f)));
    v16 f = v16_float(n);
    v16 r = v16_fma(f, v16_set1(-0.693359375f), y);
    r = v16_fma(f, v16_set1(2.12194440e-4f), r);
    v16 p = v16_set1(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set1(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set1(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set1(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set1(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set1(5.0000001201e-1f));
    p = v16_fma(v16_mul(p, r), r, v16_add(r, v16_set1(1)));
    return v16_where_ge(x, low, v16_mul(p, v16_pow2(n)));
}

// 2^x for x <= 127, relative error under 3e-7 (tested); below -126 it stays 2^-126. Half the work
// of v16_exp. x = n + r, minimax of degree 5 in r with exactly 1 at 0; NaN stays NaN.
V16 v16 v16_exp2(v16 x) {
    const v16 magic = v16_set1(0x1.8p23f); // adding and subtracting it rounds to an integer
    x = v16_max(v16_set1(-126), x);
    v16 n = v16_add(x, magic), r = v16_sub(x, v16_sub(n, magic));
    v16 p = v16_set1(1.32764725e-3f);
    p = v16_fma(p, r, v16_set1(9.67554096e-3f));
    p = v16_fma(p, r, v16_set1(5.55071309e-2f));
    p = v16_fma(p, r, v16_set1(2.40221202e-1f));
    p = v16_fma(p, r, v16_set1(6.93146944e-1f));
    p = v16_fma(p, r, v16_set1(1));
    return v16_times_pow2(p, n);
}

static int lanes(int left) { return left < 16 ? left : 16; }

// y = x / sqrt(mean(x^2) + eps) * gain, after x += add where add is given.
static void norm(float *x, const float *add, const float *gain, float *y, int dim, float eps) {
    v16 sum[2] = {v16_set1(0), v16_set1(0)};
    for (int i = 0; i < dim; i += 16) {
        int n = lanes(dim - i);
        v16 v = v16_load_n(x + i, n);
        if (add) {
            v = v16_add(v, v16_load_n(add + i, n));
            v16_store_n(x + i, v, n);
        }
        sum[i / 16 & 1] = v16_fma(v, v, sum[i / 16 & 1]);
    }
    v16 scale = v16_set1(1 / sqrtf(v16_sum(v16_add(sum[0], sum[1])) / (float)dim + eps));
    for (int i = 0; i < dim; i += 16) {
        int n = lanes(dim - i);
        v16 v = v16_mul(v16_load_n(x + i, n), scale);
        v16_store_n(y + i, v16_mul(v, v16_load_n(gain + i, n)), n);
    }
}

static void rmsnorm_row(const rmsnorm_args *a, int row) {
    size_t at = (size_t)row * (size_t)a->dim;
    norm(a->x + at, a->add ? a->add + at : NULL, a->gain, a->y + at, a->dim, a->eps);
}

static void swiglu_row(const swiglu_args *a, int row) {
    const float *gate = a->gate_up + (size_t)row * 2 * (size_t)a->width, *up = gate + a->width;
    float *y = a->y + (size_t)row * (size_t)a->width;
    const v16 one = v16_set1(1);
    for (int i = 0; i < a->width; i += 16) {
        int n = lanes(a->width - i);
        v16 g = v16_load_n(gate + i, n);
        v16 e = v16_exp(v16_sub(v16_set1(0), g));
        v16_store_n(y + i, v16_mul(v16_div(g, v16_add(one, e)), v16_load_n(up + i, n)), n);
    }
}

// Sine and cosine of a turn's fraction t in [-0.5, 0.5], in double: Taylor to the 13th power after
// folding to an eighth of a turn.
static inline void sine_cosine(double t, float scale, float *sine, float *cosine) {
    const double magic = 0x1.8p52; // adding and subtracting it rounds to an integer
    double quarter = (t * 4 + magic) - magic;
    double x = (t - quarter * 0.25) * 6.283185307179586476925, z = x * x;
    double s =
        x *
        (1 + z * (-1.0 / 6 + z * (1.0 / 120 +
                                  z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800))))));
    double c =
        1 + z * (-0.5 + z * (1.0 / 24 +
                             z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 +
                                                                       z * (1.0 / 479001600))))));
    double odd = quarter * quarter == 1 ? 1 : 0, even = 1 - odd; // quarter is -2 .. 2
    double sign_s = quarter == 2 || quarter == -2 ? -1 : 1;
    double sign_o = quarter; // +-1 when odd
    *sine = (float)((even * sign_s * s + odd * sign_o * c)) * scale;
    *cosine = (float)((even * sign_s * c - odd * sign_o * s)) * scale;
}

// sine[i], cosine[i] of position * inv_freq[i], times scale.
static void angles(const float *inv_freq, int n, int position, float scale, float *sine,
                   float *cosine) {
    const double magic = 0x1.8p52, turn = 0.159154943091895335769;
    for (int i = 0; i < n; i++) {
        double t = (double)position * (double)inv_freq[i] * turn;
        t -= (t + magic) - magic;
        sine_cosine(t, scale, &sine[i], &cosine[i]);
    }
}

static void rotate(float *head, int half, bool interleaved, const float *sine,
                   const float *cosine) {
    if (interleaved) {
        for (int i = 0; i < half; i++) {
            float x = head[2 * i], y = head[2 * i + 1];
            head[2 * i] = x * cosine[i] - y * sine[i];
            head[2 * i + 1] = x * sine[i] + y * cosine[i];
        }
    } else {
        for (int i = 0; i < half; i++) {
            float x = head[i], y = head[i + half];
            head[i] = x * cosine[i] - y * sine[i];
            head[i + half] = x * sine[i] + y * cosine[i];
        }
    }
}

// KV_Q8 as ops.h defines it.
static void store_bytes(int8_t *to, size_t stride, uint16_t *scale, const float *x, int n) {
    v16 zero = v16_set1(0), largest = zero, bad = zero; // bad: NaN where x is not finite
    for (int i = 0; i < n; i += 16) {
        v16 v = v16_load_n(x + i, lanes(n - i));
        largest = v16_max(largest, v16_abs(v));
        bad = v16_fma(v, zero, bad);
    }
    *scale = f32_to_bf16(v16_largest(largest) / 127 + v16_sum(bad));
    float s = bf16_to_f32(*scale);
    v16 inverse = v16_set1(s > 1e-30f ? 1 / s : 0);
    for (int i = 0; i < n; i += 16) {
        int8_t byte[16];
        v16i_store_i8(byte, v16_round(v16_mul(v16_load_n(x + i, lanes(n - i)), inverse)));
        for (int j = 0; j < lanes(n - i); j++, to += stride)
            *to = byte[j];
    }
}

// A key or a value to the cache, its dimensions `stride` values apart.
static void cache_store(const kv_layer *kv, void *cache, size_t at, size_t stride, size_t scale_at,
                        const float *x) {
    kv_type type = kv->type;
    int n = kv->head_dim;
    if (type == KV_Q8) {
        store_bytes((int8_t *)cache + at, stride, (uint16_t *)cache + scale_at, x, n);
        return;
    }
    uint16_t half[16];
    for (int i = 0; i < n; i += 16) {
        int m = lanes(n - i);
        if (type == KV_F16)
            v16_store_f16(half, v16_load_n(x + i, m));
        for (int j = 0; j < m; j++, at += stride)
            if (type == KV_F32)
                ((float *)cache)[at] = x[i + j];
            else
                ((uint16_t *)cache)[at] = type == KV_F16 ? half[j] : f32_to_bf16(x[i + j]);
    }
}

static void rope_row(const rope_kv_args *a, const seq_span *s, int i) {
    const kv_layer *kv = a->kv;
    int position = s->first + i, dim = kv->head_dim, half = dim / 2;
    float *row = a->qkv + (s->row + i) * a->stride, sine[half], cosine[half];
    angles(a->inv_freq, half, position, a->attn_scale, sine, cosine);
    for (int h = 0; h < a->n_heads + kv->n_kv_heads; h++) {
        float *head = row + h * dim;
        const float *gain = h < a->n_heads ? a->q_gain : a->k_gain;
        if (gain)
            norm(head, NULL, gain, head, dim, a->eps);
        rotate(head, half, a->interleaved, sine, cosine);
    }
    const float *k = row + a->n_heads * dim, *v = k + kv->n_kv_heads * dim;
    for (int h = 0; h < kv->n_kv_heads; h++) {
        size_t scale_at = kv_scale_index(kv, s, h, position);
        cache_store(kv, kv->k, kv_key_index(kv, s, h, position), (size_t)kv->page_tokens, scale_at,
                    k + h * dim);
        cache_store(kv, kv->v, kv_value_index(kv, s, h, position), 1, scale_at, v + h * dim);
    }
}

static void put_extras(const act *a, size_t group, size_t column, float scale,
                       const int32_t *half_sum) {
    size_t at = group * (size_t)a->width + column;
    int32_t sum = half_sum[0] + half_sum[1];
    if (a->extra[EXTRA_SUM]) {
        float s = scale * (float)sum;
        memcpy(&a->extra[EXTRA_SUM][at], &s, sizeof s);
    }
    if (a->extra[EXTRA_8])
        a->extra[EXTRA_8][at] = -8 * sum;
    if (a->extra[EXTRA_16])
        a->extra[EXTRA_16][at] = -16 * sum;
    if (a->extra[EXTRA_128])
        a->extra[EXTRA_128][at] = -128 * sum;
    if (a->extra[EXTRA_32]) {
        int32_t *halves = a->extra[EXTRA_32] + 2 * group * (size_t)a->width;
        halves[column] = -32 * half_sum[0];
        halves[column + (size_t)a->width] = -32 * half_sum[1];
    }
}

// Codes are x * (127 / largest |x| of the group) rounded to nearest even; groups too small to
// invert become zeros.
static void quantize_row(const float *x, int column, const act *a) {
    size_t tile = (size_t)(column / a->width) * (size_t)a->n_groups,
           c = (size_t)(column % a->width);
    for (int g = 0; g < a->n_groups; g++, x += GROUP) {
        v16 v[2] = {v16_load(x), v16_load(x + 16)};
        float largest = v16_largest(v16_max(v16_abs(v[0]), v16_abs(v[1])));
        bool tiny = largest < 1e-30f;
        v16 inverse = v16_set1(tiny ? 0 : 127 / largest);
        size_t at = (tile + (size_t)g) * (size_t)a->width + c;
        int32_t half_sum[2];
        for (int i = 0; i < 2; i++) {
            v16i q = v16_round(v16_mul(v[i], inverse));
            v16i_store_i8(a->codes + at * GROUP + i * 16, q);
            half_sum[i] = v16i_sum(q);
        }
        a->scale[at] = tiny ? 0 : largest / 127;
        put_extras(a, tile + (size_t)g, c, a->scale[at], half_sum);
    }
}

#endif
