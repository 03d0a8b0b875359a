// See tiny_lora.h.
#include "tests/support/tiny_lora.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/log.h"
#include "base/secret.h"
#include "tests/support/gguf_builder.h"

typedef struct matrix {
    const char *name;
    int n_in, n_out;
} matrix;

static float draw(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return ((float)(*seed >> 8) / (float)(1 << 24) - 0.5f) * 0.5f;
}

static void add_half(gguf_builder *b, const char *name, int n_in, int n_out, weight_type type,
                     uint32_t *seed) {
    size_t n = (size_t)n_in * (size_t)n_out;
    float *full = calloc(n, sizeof *full);
    uint16_t *bf16 = calloc(n, sizeof *bf16);
    if (!full || !bf16)
        fatal("out of memory");
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        full[i] = draw(seed);
        memcpy(&bits, &full[i], sizeof bits);
        bf16[i] = (uint16_t)(bits >> 16);
    }
    builder_put_tensor(b, name, type, (uint64_t)n_in, (uint64_t)n_out,
                       type == WT_F32 ? (void *)full : bf16,
                       n * (type == WT_F32 ? sizeof *full : sizeof *bf16));
    free(full);
    free(bf16);
}

void tiny_lora_bytes(const tiny_model *t, int rank, uint32_t seed, weight_type type,
                     const char *only, buf *out) {
    static const char *const archs[] = {
        [ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};
    int q = t->n_heads * t->head_dim, kv = t->n_kv_heads * t->head_dim;
    const matrix all[] = {{"attn_q", t->dim, q},
                          {"attn_k", t->dim, kv},
                          {"attn_v", t->dim, kv},
                          {"attn_output", q, t->dim},
                          {"ffn_gate", t->dim, t->intermediate},
                          {"ffn_up", t->dim, t->intermediate},
                          {"ffn_down", t->intermediate, t->dim}};
    gguf_builder b;
    gguf_builder_init(&b);
    builder_string(&b, "general.type", "adapter");
    builder_string(&b, "general.architecture", archs[t->arch]);
    builder_string(&b, "adapter.type", "lora");
    builder_f32(&b, "adapter.lora.alpha", TINY_ALPHA);
    for (int layer = 0; layer < TINY_LAYERS; layer++)
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            char name[64];
            if (only && !strstr(all[i].name, only))
                continue;
            snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", layer, all[i].name);
            add_half(&b, name, all[i].n_in, rank, type, &seed);
            name[strlen(name) - 1] = 'b';
            add_half(&b, name, rank, all[i].n_out, type, &seed);
        }
    gguf_builder_write(&b, out);
    gguf_builder_release(&b);
}

void tiny_lora_put(const char *dir, const char *tenant, const tiny_model *t, const char *name,
                   uint32_t seed, char *id) {
    buf bytes = {0};
    uint8_t digest[32];
    char path[256];
    err e = {0};
    tiny_lora_bytes(t, 4, seed, WT_F32, NULL, &bytes);
    secret_sha256(bytes.data, bytes.len, digest);
    int n = snprintf(id, 64, "%s-", name);
    for (int i = 0; i < 8; i++)
        n += snprintf(id + n, 64 - (size_t)n, "%02x", digest[i]);
    snprintf(path, sizeof path, "%s/%s", dir, tenant);
    if (file_mkdirs(path, 0700, &e))
        fatal("%s", e.message);
    snprintf(path, sizeof path, "%s/%s/%s.gguf", dir, tenant, id);
    if (file_write_atomic(path, 0600, bytes.data, bytes.len, &e))
        fatal("%s", e.message);
    buf_release(&bytes);
}

static void merge_one(const gguf *base, const gguf_tensor *a, const gguf_tensor *b) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)a->name.n - (int)strlen(".lora_a"), a->name.p);
    const gguf_tensor *w = gguf_find(base, name);
    if (!w || w->type != WT_F32)
        fatal("%s is no F32 matrix", name);
    float *out = (float *)(uintptr_t)w->data;
    const float *fa = a->data, *fb = b->data;
    uint64_t rank = b->dims[0];
    for (uint64_t o = 0; o < w->dims[1]; o++)
        for (uint64_t i = 0; i < w->dims[0]; i++) {
            double sum = 0;
            for (uint64_t r = 0; r < rank; r++)
                sum += (double)fb[o * rank + r] * (double)fa[r * w->dims[0] + i];
            out[o * w->dims[0] + i] += (float)(TINY_ALPHA / (double)rank * sum);
        }
}

void tiny_lora_merge(buf *model_bytes, const buf *adapter) {
    gguf *base = NULL, *lora = NULL;
    err e = {0};
    if (gguf_open_memory(model_bytes->data, model_bytes->len, &base, &e) ||
        gguf_open_memory(adapter->data, adapter->len, &lora, &e))
        fatal("%s", e.message);
    for (size_t i = 0; i + 1 < gguf_n_tensors(lora); i += 2)
        merge_one(base, gguf_tensor_at(lora, i), gguf_tensor_at(lora, i + 1));
    gguf_close(base);
    gguf_close(lora);
}
