// Rows are written one at a time, so that a real model needs little memory. Owns nothing between
// calls.
#include "tests/support/hf_writer.h"
#include <stdlib.h>
#include <string.h>
#include "kernels/half.h"

static const char *hf_name(const char *name, int layer, char *out, size_t n) {
    static const char *const names[][2] = {
        {"token_embd", "model.embed_tokens"},
        {"output_norm", "model.norm"},
        {"output", "lm_head"},
        {"attn_norm", "input_layernorm"},
        {"attn_q", "self_attn.q_proj"},
        {"attn_k", "self_attn.k_proj"},
        {"attn_v", "self_attn.v_proj"},
        {"attn_q_norm", "self_attn.q_norm"},
        {"attn_k_norm", "self_attn.k_norm"},
        {"attn_output", "self_attn.o_proj"},
        {"ffn_norm", "post_attention_layernorm"},
        {"ffn_gate", "mlp.gate_proj"},
        {"ffn_up", "mlp.up_proj"},
        {"ffn_down", "mlp.down_proj"},
    };
    const char *dot = strrchr(name, '.');
    size_t stem = (size_t)(dot - name);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i][0]) != stem || memcmp(names[i][0], name, stem))
            continue;
        if (layer < 0)
            snprintf(out, n, "%s%s", names[i][1], dot);
        else
            snprintf(out, n, "model.layers.%d.%s%s", layer, names[i][1], dot);
        return out;
    }
    fatal("hf_writer: tensor %s", name);
}

// GGUF's row of a directory's row: of a head's rows converters put i and i + half side by side.
static uint64_t row_of(const model_shape *s, const char *name, uint64_t row) {
    bool permuted = s->rope_pairs && (strstr(name, "attn_q.") || strstr(name, "attn_k."));
    uint64_t head_dim = (uint64_t)s->head_dim, half = head_dim / 2, in = row % head_dim;
    return permuted ? row - in + 2 * (in % half) + in / half : row;
}

static void put_row(FILE *f, const float *x, size_t n, weight_type type) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h = type == WT_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        if (type == WT_F32 ? fwrite(&x[i], 4, 1, f) != 1 : fwrite(&h, 2, 1, f) != 1)
            fatal("hf_writer: cannot write");
    }
}

static void put_tensor(FILE *f, const model_shape *s, const gguf_tensor *t, weight_type type) {
    uint64_t width = t->dims[0];
    int n_values = 1, n_bytes = 0;
    weight_type_block((weight_type)t->type, &n_values, &n_bytes);
    float *row = malloc(width * sizeof *row);
    char name[80] = {0};
    if (!row)
        fatal("out of memory");
    memcpy(name, t->name.p, t->name.n);
    for (uint64_t r = 0; r < t->dims[1]; r++) {
        const char *at = (const char *)t->data +
                         row_of(s, name, r) * (width / (uint64_t)n_values) * (uint64_t)n_bytes;
        weight_dequantize((weight_type)t->type, at, row, (int64_t)width);
        put_row(f, row, (size_t)width, type);
    }
    free(row);
}

static void put_header(FILE *f, const gguf *g, weight_type type) {
    buf header = {0}, length = {0};
    uint64_t at = 0;
    buf_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        char name[80] = {0}, full[128];
        int layer = -1, skip = 0;
        memcpy(name, t->name.p, t->name.n);
        sscanf(name, "blk.%d.%n", &layer, &skip);
        uint64_t bytes = t->dims[0] * t->dims[1] * (type == WT_F32 ? 4 : 2);
        buf_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                   hf_name(name + skip, layer, full, sizeof full), weight_type_name(type));
        if (t->n_dims > 1)
            buf_printf(&header, "%llu,", (unsigned long long)t->dims[1]);
        buf_printf(&header, "%llu],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->dims[0],
                   (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    buf_puts(&header, "}");
    buf_put_u64(&length, header.len);
    if (fwrite(length.data, 8, 1, f) != 1 || fwrite(header.data, header.len, 1, f) != 1)
        fatal("hf_writer: cannot write");
    buf_release(&header);
    buf_release(&length);
}

void hf_write_model(const model *m, const char *directory, weight_type type) {
    const gguf *g = model_gguf(m);
    gguf_string pre;
    char name[16] = {0};
    if (!gguf_get_string(g, "tokenizer.ggml.pre", &pre) || pre.n >= sizeof name)
        fatal("hf_writer: no tokenizer");
    memcpy(name, pre.p, pre.n);
    hf_write_tokenizer(g, name, directory);
    hf_write_config(model_get_shape(m), directory);
    FILE *f = hf_open_weights(directory);
    put_header(f, g, type);
    for (size_t i = 0; i < gguf_n_tensors(g); i++)
        put_tensor(f, model_get_shape(m), gguf_tensor_at(g, i), type);
    hf_close_weights(f);
}
