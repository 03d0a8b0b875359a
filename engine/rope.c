// Computes the inverse frequencies once, at load, in double precision. Owns nothing; any thread.
// Does not rotate anything: that is ops->rope_kv.
#include "engine/rope.h"
#include "kernels/ops.h"
#include <math.h>
#include <stdio.h>

static const char *arch_key(const model_shape *s) {
    static const char *const names[] = {
        [ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};
    return names[s->arch];
}

static double get_key(const model_shape *s, const gguf *g, const char *key, double otherwise) {
    char name[96];
    double v = otherwise;
    snprintf(name, sizeof name, "%s.rope.%s", arch_key(s), key);
    return gguf_get_f64(g, name, &v) ? v : otherwise;
}

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
static void scale_llama3(const model_shape *s, const gguf *g, int half, double *freq) {
    double low = get_key(s, g, "scaling.low_freq_factor", 1.0);
    double high = get_key(s, g, "scaling.high_freq_factor", 4.0);
    double context = s->rope_original_context, factor = (double)s->rope_factor;
    for (int i = 0; i < half; i++) {
        double turns = context * freq[i] / (2 * M_PI);
        if (turns < low)
            freq[i] /= factor;
        else if (turns <= high) {
            double smooth = (turns - low) / (high - low);
            freq[i] = (1 - smooth) * freq[i] / factor + smooth * freq[i];
        }
    }
}

// The pair that turns `turns` times within the original context.
static double yarn_pair(const model_shape *s, double turns) {
    return s->head_dim * log(s->rope_original_context / (turns * 2 * M_PI)) /
           (2 * log((double)s->rope_base));
}

static void scale_yarn(const model_shape *s, const gguf *g, int half, double *freq) {
    double low = floor(yarn_pair(s, get_key(s, g, "scaling.yarn_beta_fast", 32.0)));
    double high = ceil(yarn_pair(s, get_key(s, g, "scaling.yarn_beta_slow", 1.0)));
    low = fmax(low, 0);
    high = fmin(high, s->head_dim - 1);
    double width = fmax(high - low, 0.001);
    for (int i = 0; i < half; i++) {
        double ramp = fmin(fmax((i - low) / width, 0), 1); // 0: keep, 1: interpolate
        freq[i] = freq[i] * (1 - ramp) + freq[i] / (double)s->rope_factor * ramp;
    }
}

static int check_scaling(const model_shape *s, err *e) {
    if (s->scaling == ROPE_NONE)
        return 0;
    if (!(s->rope_factor > 0) || !isfinite(s->rope_factor))
        return err_set(e, ERR_FORMAT, NULL, "%s.rope.scaling.factor must be > 0", arch_key(s));
    if (s->scaling != ROPE_LINEAR && s->rope_original_context < 1)
        return err_set(
            e, ERR_FORMAT, NULL,
            "%s.rope.scaling.original_context_length is missing, but the scaling needs it",
            arch_key(s));
    return 0;
}

int rope_frequencies(const model_shape *s, const gguf *g, float *inv_freq, float *attn_scale,
                     err *e) {
    int half = s->head_dim / 2;
    double freq[256];
    if (half < 1 || half > (int)(sizeof freq / sizeof *freq) || s->head_dim % 2 != 0)
        return err_set(e, ERR_UNSUPPORTED, NULL, "head dimension %d", s->head_dim);
    double rotated = get_key(s, g, "dimension_count", s->head_dim);
    if (rotated != s->head_dim)
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       "%s.rope.dimension_count %.0f: only whole heads (%d) are rotated",
                       arch_key(s), rotated, s->head_dim);
    if (check_scaling(s, e))
        return -1;
    for (int i = 0; i < half; i++)
        freq[i] = pow((double)s->rope_base, -2.0 * i / s->head_dim);
    const gguf_tensor *t = gguf_find(g, "rope_freqs.weight");
    if (t && divide_by_tensor(t, half, freq, e))
        return -1;
    *attn_scale = 1;
    if (s->scaling == ROPE_LLAMA3 && !t)
        scale_llama3(s, g, half, freq);
    if (s->scaling == ROPE_LINEAR)
        for (int i = 0; i < half; i++)
            freq[i] /= (double)s->rope_factor;
    if (s->scaling == ROPE_YARN) {
        scale_yarn(s, g, half, freq);
        double grown = s->rope_factor > 1 ? 0.1 * log((double)s->rope_factor) + 1 : 1;
        *attn_scale = (float)(grown * (double)s->rope_attn_factor);
    }
    for (int i = 0; i < half; i++)
        inv_freq[i] = (float)freq[i];
    return 0;
}
