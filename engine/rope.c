// Computes the inverse frequencies once, at load, in double precision. Owns nothing; any thread.
// Does not rotate anything: that is ops->rope_kv.
#include "engine/rope.h"
#include "kernels/ops.h"
#include <math.h>

// Llama 3.1's bounds, in turns within the original context; YaRN's likewise (beta slow and fast).
static const double llama3_low = 1, llama3_high = 4, yarn_slow = 1, yarn_fast = 32;

// The file's own divisors, one per pair (llama.cpp writes Llama 3.1's scaling this way).
static void divide_by_tensor(const gguf_tensor *t, int half, double *freq) {
    float divisors[ROPE_MAX_HEAD_DIM / 2];
    weight_dequantize((weight_type)t->type, t->data, divisors, half);
    for (int i = 0; i < half; i++)
        freq[i] /= (double)divisors[i];
}

// Long wavelengths are stretched by the factor, short ones stay, those between are blended.
static void scale_llama3(const model_shape *s, int half, double *freq) {
    double context = s->rope_original_context, factor = (double)s->rope_factor;
    for (int i = 0; i < half; i++) {
        double turns = context * freq[i] / (2 * M_PI);
        double smooth = fmin(fmax((turns - llama3_low) / (llama3_high - llama3_low), 0), 1);
        freq[i] *= (1 - smooth) / factor + smooth;
    }
}

// The pair that turns `turns` times within the original context.
static double yarn_pair(const model_shape *s, double turns) {
    return s->head_dim * log(s->rope_original_context / (turns * 2 * M_PI)) /
           (2 * log((double)s->rope_base));
}

static void scale_yarn(const model_shape *s, int half, double *freq) {
    double low = fmax(floor(yarn_pair(s, yarn_fast)), 0);
    double high = fmin(ceil(yarn_pair(s, yarn_slow)), s->head_dim - 1);
    double width = fmax(high - low, 0.001);
    for (int i = 0; i < half; i++) {
        double ramp = fmin(fmax((i - low) / width, 0), 1); // 0: keep, 1: interpolate
        freq[i] = freq[i] * (1 - ramp) + freq[i] / (double)s->rope_factor * ramp;
    }
}

void rope_frequencies(const model_shape *s, const gguf *g, float *inv_freq, float *attn_scale) {
    int half = s->head_dim / 2;
    double freq[ROPE_MAX_HEAD_DIM / 2];
    const gguf_tensor *t = g ? gguf_find(g, "rope_freqs.weight") : NULL;
    for (int i = 0; i < half; i++)
        freq[i] = pow((double)s->rope_base, -2.0 * i / s->head_dim);
    *attn_scale = 1;
    if (t)
        divide_by_tensor(t, half, freq);
    else if (s->scaling == ROPE_LLAMA3)
        scale_llama3(s, half, freq);
    if (s->scaling == ROPE_LINEAR)
        for (int i = 0; i < half; i++)
            freq[i] /= (double)s->rope_factor;
    if (s->scaling == ROPE_YARN) {
        scale_yarn(s, half, freq);
        *attn_scale =
            (float)((0.1 * log((double)s->rope_factor) + 1) * (double)s->rope_attn_factor);
    }
    for (int i = 0; i < half; i++)
        inv_freq[i] = (float)freq[i];
}
