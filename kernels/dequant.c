// The weight formats of GGUF and WT_INT4, block by block, back to float. Owns nothing; any thread.
// This is the one place that knows the layouts of the files; backends repack from what it gives or
// from the codes that dequant.h exposes.
#include "kernels/dequant.h"
#include "kernels/half.h"
#include <math.h>

static const struct {
    weight_type type;
    const char *name;
    int n_values, n_bytes;
} formats[] = {
    {WT_F32, "F32", 1, 4},       {WT_F16, "F16", 1, 2},       {WT_BF16, "BF16", 1, 2},
    {WT_Q4_0, "Q4_0", 32, 18},   {WT_Q4_1, "Q4_1", 32, 20},   {WT_Q5_0, "Q5_0", 32, 22},
    {WT_Q5_1, "Q5_1", 32, 24},   {WT_Q8_0, "Q8_0", 32, 34},   {WT_Q4_K, "Q4_K", 256, 144},
    {WT_Q5_K, "Q5_K", 256, 176}, {WT_Q6_K, "Q6_K", 256, 210}, {WT_INT4, "INT4", 32, 20},
};

bool weight_type_block(weight_type t, int *n_values, int *n_bytes) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (formats[i].type == t) {
            *n_values = formats[i].n_values;
            *n_bytes = formats[i].n_bytes;
            return true;
        }
    return false;
}

const char *weight_type_name(weight_type t) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (formats[i].type == t)
            return formats[i].name;
    return "?";
}

static uint16_t load16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static uint32_t load32(const uint8_t *p) {
    return (uint32_t)load16(p) | (uint32_t)load16(p + 2) << 16;
}

// Codes of 32 values: low nibbles first, then high nibbles.
static void nibbles(const uint8_t *q, int8_t *code) {
    for (int i = 0; i < 16; i++) {
        code[i] = (int8_t)(q[i] & 15);
        code[i + 16] = (int8_t)(q[i] >> 4);
    }
}

// The same with a fifth bit each from `high`.
static void five_bits(const uint8_t *q, uint32_t high, int8_t *code) {
    nibbles(q, code);
    for (int i = 0; i < 32; i++)
        code[i] = (int8_t)(code[i] | (int8_t)((high >> i & 1) << 4));
}

// 6-bit scale and minimum number j of a K block's 12 bytes.
static void k_scale(const uint8_t *s, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

// Group g of 32 in a Q4_K (high NULL) or Q5_K block.
static void k_group(const uint8_t *block, const uint8_t *high, const uint8_t *q, int g,
                    quant_group *out) {
    int scale, min;
    k_scale(block + 4, g, &scale, &min);
    out->scale[0] = out->scale[1] = f16_to_f32(load16(block)) * (float)scale;
    out->min = f16_to_f32(load16(block + 2)) * (float)min * -1.0f;
    for (int i = 0; i < 32; i++) {
        int v = g & 1 ? q[g / 2 * 32 + i] >> 4 : q[g / 2 * 32 + i] & 15;
        out->code[i] = (int8_t)(high ? v | (high[i] >> g & 1) << 4 : v);
    }
}

// Group g of 32 (two of 16) in a Q6_K block: 128 bytes of low bits, 64 of high bits, 16 scales,
// fp16.
static void q6_group(const uint8_t *block, int g, quant_group *out) {
    const uint8_t *low = block + g / 4 * 64 + (g & 1) * 32, *high = block + 128 + g / 4 * 32;
    float d = f16_to_f32(load16(block + 208));
    for (int i = 0; i < 2; i++)
        out->scale[i] = d * (float)(int8_t)block[192 + g * 2 + i];
    for (int i = 0; i < 32; i++) {
        int lo = (g & 3) < 2 ? low[i] & 15 : low[i] >> 4;
        out->code[i] = (int8_t)((lo | (high[i] >> (g & 3) * 2 & 3) << 4) - 32);
    }
}

void quant_group_read(weight_type t, const void *row, int64_t g, quant_group *out) {
    int n_values = 0, n_bytes = 0;
    weight_type_block(t, &n_values, &n_bytes);
    int per_block = n_values / 32, sub = (int)(g % per_block);
    const uint8_t *b = (const uint8_t *)row + g / per_block * n_bytes;
    out->scale[0] = out->scale[1] = f16_to_f32(load16(b));
    out->min = 0;
    out->zero = 0;
    switch (t) {
    case WT_Q4_0:
        nibbles(b + 2, out->code);
        for (int i = 0; i < 32; i++)
            out->code[i] = (int8_t)(out->code[i] - 8);
        break;
    case WT_Q4_1:
        out->min = f16_to_f32(load16(b + 2));
        nibbles(b + 4, out->code);
        break;
    case WT_Q5_0:
        five_bits(b + 6, load32(b + 2), out->code);
        for (int i = 0; i < 32; i++)
            out->code[i] = (int8_t)(out->code[i] - 16);
        break;
    case WT_Q5_1:
        out->min = f16_to_f32(load16(b + 2));
        five_bits(b + 8, load32(b + 4), out->code);
        break;
    case WT_Q8_0:
        for (int i = 0; i < 32; i++)
            out->code[i] = (int8_t)b[2 + i];
        break;
    case WT_Q4_K:
        k_group(b, NULL, b + 16, sub, out);
        break;
    case WT_Q5_K:
        k_group(b, b + 16, b + 48, sub, out);
        break;
    case WT_Q6_K:
        q6_group(b, sub, out);
        break;
    case WT_INT4:
        out->zero = b[2];
        out->min = -out->scale[0] * (float)out->zero;
        nibbles(b + 4, out->code);
        break;
    case WT_F32:
    case WT_F16:
    case WT_BF16:
        fatal("quant_group_read: %s has no groups", weight_type_name(t));
    }
}

float quant_row_bound(weight_type t, const void *row, int64_t n) {
    int n_values = 0, n_bytes = 0;
    weight_type_block(t, &n_values, &n_bytes);
    const uint8_t *b = row;
    float bound = 0;
    for (int64_t i = 0; i < n / n_values; i++, b += n_bytes) {
        float d = fabsf(f16_to_f32(load16(t == WT_Q6_K ? b + 208 : b))) * 128;
        float min = t == WT_Q6_K ? 0 : fabsf(f16_to_f32(load16(b + 2))) * 64;
        bound = fmaxf(bound, fmaxf(d, min));
    }
    return bound;
}

int weight_source_check(const weight_source *s, int64_t n_in, err *e) {
    int n_values, n_bytes;
    if (!weight_type_block(s->type, &n_values, &n_bytes))
        return err_set(e, ERR_UNSUPPORTED, s->name, "tensor %s has type %d, which no backend takes",
                       s->name, (int)s->type);
    if (s->n_out < 1 || s->n_in < 1 || s->n_in != n_in)
        return err_set(e, ERR_UNSUPPORTED, s->name,
                       "tensor %s is %lld x %lld where %lld wide is needed", s->name,
                       (long long)s->n_out, (long long)s->n_in, (long long)n_in);
    if (s->order && s->type != WT_INT4)
        return err_set(e, ERR_UNSUPPORTED, s->name, "tensor %s: %s weights have no order", s->name,
                       weight_type_name(s->type));
    if (s->n_in % n_values)
        return err_set(e, ERR_UNSUPPORTED, s->name,
                       "tensor %s: width %lld is no multiple of the %d values of a %s block",
                       s->name, (long long)s->n_in, n_values, weight_type_name(s->type));
    return 0;
}

void weight_dequantize(weight_type t, const void *row, float *out, int64_t n) {
    const uint8_t *p = row;
    if (t == WT_F32) {
        memcpy(out, row, (size_t)n * sizeof(float));
    } else if (t == WT_F16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = f16_to_f32(load16(p + 2 * i));
    } else if (t == WT_BF16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = bf16_to_f32(load16(p + 2 * i));
    } else {
        for (int64_t g = 0; g < n / 32; g++) {
            quant_group q;
            quant_group_read(t, row, g, &q);
            for (int i = 0; i < 32; i++)
                out[g * 32 + i] = q.scale[i / 16] * (float)q.code[i] + q.min;
        }
    }
}
