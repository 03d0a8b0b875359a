// Tables of GPUs and published shapes, and the arithmetic of memory. Owns nothing. Does not look at
// the machine (cli/fit.c does) and knows no backend: a step's memory is that of engine/graph.c, the
// same rows on every backend.
#include "model/fit.h"
#include <string.h>
#include <strings.h>

#define MIB(n) ((uint64_t)(n) << 20)

static const fit_gpu gpus[] = {
    {"a100-40g", "NVIDIA A100 40GB", MIB(40960)},
    {"a100-80g", "NVIDIA A100 80GB", MIB(81920)},
    {"a10", "NVIDIA A10 24GB", MIB(23028)},
    {"a30", "NVIDIA A30 24GB", MIB(24576)},
    {"a40", "NVIDIA A40 48GB", MIB(46068)},
    {"a6000", "NVIDIA RTX A6000 48GB", MIB(49140)},
    {"b200", "NVIDIA B200 180GB", MIB(183359)},
    {"h100-80g", "NVIDIA H100 80GB", MIB(81559)},
    {"h100-94g", "NVIDIA H100 NVL 94GB", MIB(95830)},
    {"h200", "NVIDIA H200 141GB", MIB(143771)},
    {"l4", "NVIDIA L4 24GB", MIB(23034)},
    {"l40s", "NVIDIA L40S 48GB", MIB(46068)},
    {"rtx-3090", "NVIDIA GeForce RTX 3090 24GB", MIB(24576)},
    {"rtx-4090", "NVIDIA GeForce RTX 4090 24GB", MIB(24564)},
    {"rtx-5090", "NVIDIA GeForce RTX 5090 32GB", MIB(32607)},
    {"rtx-6000-ada", "NVIDIA RTX 6000 Ada 48GB", MIB(49140)},
};
#define N_GPUS (sizeof gpus / sizeof *gpus)

#define SHAPE(arch_, layers, width, heads, kv, head, inter, vocab, ctx, tied)                      \
    {                                                                                              \
        .arch = arch_, .n_layers = layers, .dim = width, .n_heads = heads, .n_kv_heads = kv,       \
        .head_dim = head, .intermediate = inter, .n_vocab = vocab, .context = ctx,                 \
        .tied_head = tied, .qkv_bias = arch_ == ARCH_QWEN2                                         \
    }

// From each model's published config.json.
static const struct {
    const char *name, *class, *full_name;
    model_shape shape;
} shapes[] = {
    {"qwen2.5-0.5b", "0.5b", "Qwen2.5-0.5B",
     SHAPE(ARCH_QWEN2, 24, 896, 14, 2, 64, 4864, 151936, 32768, true)},
    {"qwen2.5-1.5b", "1.5b", "Qwen2.5-1.5B",
     SHAPE(ARCH_QWEN2, 28, 1536, 12, 2, 128, 8960, 151936, 32768, true)},
    {"qwen2.5-3b", "3b", "Qwen2.5-3B",
     SHAPE(ARCH_QWEN2, 36, 2048, 16, 2, 128, 11008, 151936, 32768, true)},
    {"qwen2.5-7b", "7b", "Qwen2.5-7B",
     SHAPE(ARCH_QWEN2, 28, 3584, 28, 4, 128, 18944, 152064, 32768, false)},
    {"qwen2.5-14b", "14b", "Qwen2.5-14B",
     SHAPE(ARCH_QWEN2, 48, 5120, 40, 8, 128, 13824, 152064, 32768, false)},
    {"qwen2.5-32b", "32b", "Qwen2.5-32B",
     SHAPE(ARCH_QWEN2, 64, 5120, 40, 8, 128, 27648, 152064, 32768, false)},
    {"qwen2.5-72b", "72b", "Qwen2.5-72B",
     SHAPE(ARCH_QWEN2, 80, 8192, 64, 8, 128, 29568, 152064, 32768, false)},
    {"qwen3-0.6b", "", "Qwen3-0.6B",
     SHAPE(ARCH_QWEN3, 28, 1024, 16, 8, 128, 3072, 151936, 40960, true)},
    {"qwen3-1.7b", "", "Qwen3-1.7B",
     SHAPE(ARCH_QWEN3, 28, 2048, 16, 8, 128, 6144, 151936, 40960, true)},
    {"qwen3-4b", "", "Qwen3-4B",
     SHAPE(ARCH_QWEN3, 36, 2560, 32, 8, 128, 9728, 151936, 40960, true)},
    {"qwen3-8b", "", "Qwen3-8B",
     SHAPE(ARCH_QWEN3, 36, 4096, 32, 8, 128, 12288, 151936, 40960, false)},
    {"qwen3-14b", "", "Qwen3-14B",
     SHAPE(ARCH_QWEN3, 40, 5120, 40, 8, 128, 17408, 151936, 40960, false)},
    {"qwen3-32b", "", "Qwen3-32B",
     SHAPE(ARCH_QWEN3, 64, 5120, 64, 8, 128, 25600, 151936, 40960, false)},
    {"llama-3.2-1b", "", "Llama-3.2-1B",
     SHAPE(ARCH_LLAMA, 16, 2048, 32, 8, 64, 8192, 128256, 131072, true)},
    {"llama-3.2-3b", "", "Llama-3.2-3B",
     SHAPE(ARCH_LLAMA, 28, 3072, 24, 8, 128, 8192, 128256, 131072, true)},
    {"llama-3.1-8b", "", "Llama-3.1-8B",
     SHAPE(ARCH_LLAMA, 32, 4096, 32, 8, 128, 14336, 128256, 131072, false)},
    {"llama-3.1-70b", "", "Llama-3.1-70B",
     SHAPE(ARCH_LLAMA, 80, 8192, 64, 8, 128, 28672, 128256, 131072, false)},
    {"smollm2-135m", "", "SmolLM2-135M",
     SHAPE(ARCH_LLAMA, 30, 576, 9, 3, 64, 1536, 49152, 8192, true)},
    {"smollm2-360m", "", "SmolLM2-360M",
     SHAPE(ARCH_LLAMA, 32, 960, 15, 5, 64, 2560, 49152, 8192, true)},
    {"smollm2-1.7b", "", "SmolLM2-1.7B",
     SHAPE(ARCH_LLAMA, 24, 2048, 32, 32, 64, 8192, 49152, 8192, true)},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

const fit_gpu *fit_gpu_at(size_t i) { return i < N_GPUS ? &gpus[i] : NULL; }

const fit_gpu *fit_gpu_find(const char *name) {
    for (size_t i = 0; i < N_GPUS; i++)
        if (!strcmp(gpus[i].name, name))
            return &gpus[i];
    return NULL;
}

const char *fit_shape_name(size_t i) { return i < N_SHAPES ? shapes[i].name : NULL; }

const model_shape *fit_shape_find(const char *name, const char **full_name) {
    for (size_t i = 0; i < N_SHAPES; i++)
        if (*name && (!strcasecmp(shapes[i].name, name) || !strcasecmp(shapes[i].class, name))) {
            *full_name = shapes[i].full_name;
            return &shapes[i].shape;
        }
    return NULL;
}

// ---- sums

void fit_matrix(const model_shape *s, fit_part part, int64_t *n_out, int64_t *n_in, int *n) {
    int64_t q = (int64_t)s->n_heads * s->head_dim, kv = (int64_t)s->n_kv_heads * s->head_dim;
    const int64_t rows[FIT_PARTS] = {[FIT_EMBEDDING] = s->n_vocab,
                                     [FIT_HEAD] = s->n_vocab,
                                     [FIT_Q] = q,
                                     [FIT_K] = kv,
                                     [FIT_V] = kv,
                                     [FIT_ATTN_OUT] = s->dim,
                                     [FIT_GATE] = s->intermediate,
                                     [FIT_UP] = s->intermediate,
                                     [FIT_DOWN] = s->dim};
    *n_out = rows[part];
    *n_in = part == FIT_ATTN_OUT ? q : part == FIT_DOWN ? s->intermediate : s->dim;
    *n = part == FIT_EMBEDDING ? 1 : part == FIT_HEAD ? !s->tied_head : s->n_layers;
}

static uint64_t vector_values(const model_shape *s) {
    uint64_t q = (uint64_t)s->n_heads * (uint64_t)s->head_dim;
    uint64_t kv = (uint64_t)s->n_kv_heads * (uint64_t)s->head_dim, layer = 2 * (uint64_t)s->dim;
    if (s->qkv_bias)
        layer += q + 2 * kv;
    if (s->arch == ARCH_QWEN3)
        layer += 2 * (uint64_t)s->head_dim;
    return layer * (uint64_t)s->n_layers + (uint64_t)s->dim;
}

uint64_t fit_vector_bytes(const model_shape *s) { return vector_values(s) * sizeof(float); }

uint64_t fit_parameters(const model_shape *s) {
    uint64_t all = vector_values(s);
    for (int part = 0; part < FIT_PARTS; part++) {
        int64_t n_out, n_in;
        int n;
        fit_matrix(s, (fit_part)part, &n_out, &n_in, &n);
        all += (uint64_t)n_out * (uint64_t)n_in * (uint64_t)n;
    }
    return all;
}

fit fit_compute(const model_shape *s, uint64_t weight_bytes, uint64_t kv_page_bytes,
                uint64_t memory_bytes, int rows) {
    uint64_t q = (uint64_t)s->n_heads * (uint64_t)s->head_dim;
    uint64_t kv = (uint64_t)s->n_kv_heads * (uint64_t)s->head_dim;
    // engine/graph.c: x, norm, out; qkv; attn; gate_up; act. engine/engine.c: logits of 64.
    uint64_t row = 3 * (uint64_t)s->dim + q + 2 * kv + q + 3 * (uint64_t)s->intermediate;
    uint64_t logits = 64 * (uint64_t)s->n_vocab;
    uint64_t page = (uint64_t)s->n_layers * 2 * (uint64_t)s->n_kv_heads * kv_page_bytes;
    fit f = {.kv_bytes_per_token = page / FIT_PAGE_TOKENS,
             .activation_bytes = (row * (uint64_t)rows + logits) * sizeof(float)};
    uint64_t used = weight_bytes + f.activation_bytes;
    f.free_bytes = memory_bytes > used ? memory_bytes - used : 0;
    f.kv_tokens = (int64_t)(f.free_bytes / page * FIT_PAGE_TOKENS);
    f.fits = f.kv_tokens > 0;
    return f;
}

int64_t fit_requests(const fit *f, int context) {
    int64_t pages = (context + FIT_PAGE_TOKENS - 1) / FIT_PAGE_TOKENS;
    return f->kv_tokens / FIT_PAGE_TOKENS / pages;
}
