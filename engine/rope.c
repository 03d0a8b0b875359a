// Computes the inverse frequencies once, at load, in double precision. Owns nothing; any thread.
// Does not rotate anything: that is ops->rope_kv.
#include "engine/rope.h"
#include "kernels/ops.h"
#include <math.h>

// Llama 3.1's bounds, in turns within the original context; YaRN's likewise (beta slow and fast).
static const double llama3_low = 1, llama3_high = 4, yarn_slow = 1, yarn_fast = 32;

// The file's own divisors, one per pair (llama.cpp writes Llama 3.1's scaling this way).
static int divide_by_tensor(const gguf_tensor *t, int half, double *freq, err *e) {
    int n_values, n_bytes;
    if (!weight_type_block((weight_type)t->type, &n_values, &n_bytes) || n_values != 1)
        return err_set(e, ERR_UNSUPPORTED, NULL, "tensor rope_freqs.weight: type %u", t->type);
    if (t->dims[0] != (uint64_t)half || t->bytes != (uint64_t)half * (uint64_t)n_bytes)
        return err_set(e, ERR_FORMAT, NULL, "tensor rope_freqs.weight: %d values expected", half);
    for (int i = 0; i < half; i++) {
        float divisor;
        weight_dequantize((weight_type)t->type, (const char *)t->data + (size_t)i * (size_t)n_bytes,
                          &divisor, 1);
        if (!(divisor > 0) || !isfinite(divisor))
            return err_set(e, ERR_FORMAT, NULL, "tensor rope_freqs.weight: value %d is not > 0", i);
        freq[i] /= (double)divisor;
    }
    return 0;
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

int rope_frequencies(const model_shape *s, const gguf *g, float *inv_freq, float *attn_scale,
                     err *e) {
    int half = s->head_dim / 2;
    double freq[ROPE_MAX_HEAD_DIM / 2];
    if (s->head_dim < 2 || s->head_dim > ROPE_MAX_HEAD_DIM)
        return err_set(e, ERR_UNSUPPORTED, NULL, "heads of %d values", s->head_dim);
    for (int i = 0; i < half; i++)
        freq[i] = pow((double)s->rope_base, -2.0 * i / s->head_dim);
    const gguf_tensor *t = g ? gguf_find(g, "rope_freqs.weight") : NULL;
    if (t && divide_by_tensor(t, half, freq, e))
        return -1;
    *attn_scale = 1;
    if (s->scaling == ROPE_LLAMA3 && !t)
        scale_llama3(s, half, freq);
    if (s->scaling == ROPE_LINEAR)
        for (int i = 0; i < half; i++)
            freq[i] /= (double)s->rope_factor;
    if (s->scaling == ROPE_YARN) {
        scale_yarn(s, half, freq);
        double grown = s->rope_factor > 1 ? 0.1 * log((double)s->rope_factor) + 1 : 1;
        *attn_scale = (float)(grown * (double)s->rope_attn_factor);
    }
    for (int i = 0; i < half; i++)
        inv_freq[i] = (float)freq[i];
    return 0;
}
