// Will a model fit? The sums behind `tiergate fit`: weights, KV cache and activations of a shape in
// a given memory. Pure arithmetic; any thread. How many bytes a weight takes is the backend's to
// say, so the caller brings the weights' sum.
#ifndef MODEL_FIT_H
#define MODEL_FIT_H
#include "base/err.h"
#include "model/model.h"

typedef struct fit_gpu {
    const char *name;      // "h100-80g"
    const char *full_name; // "NVIDIA H100 80GB"
    uint64_t memory_bytes; // as nvidia-smi reports it, with ECC on
} fit_gpu;
const fit_gpu *fit_gpu_find(const char *name); // NULL: none
const fit_gpu *fit_gpu_at(size_t i);           // NULL: past the last
// A published model by its name or class: "qwen2.5-7b", "qwen3-8b", "llama-3.1-8b", "7b" ... NULL:
// none. Fields that do not matter for memory are 0.
const model_shape *fit_shape_find(const char *name, const char **full_name);
const char *fit_shape_name(size_t i); // NULL: past the last

typedef enum fit_part { // the matrices of a shape, in this order
    FIT_EMBEDDING,
    FIT_HEAD, // none when tied
    FIT_Q,
    FIT_K,
    FIT_V,
    FIT_ATTN_OUT,
    FIT_GATE,
    FIT_UP,
    FIT_DOWN,
    FIT_PARTS
} fit_part;
// Rows and columns of a matrix; *n: how many of them a model has (0 or 1, or one a layer).
void fit_matrix(const model_shape *s, fit_part part, int64_t *n_out, int64_t *n_in, int *n);
// Norms and biases, as float32.
uint64_t fit_vector_bytes(const model_shape *s);
uint64_t fit_parameters(const model_shape *s);

typedef struct fit {
    uint64_t kv_bytes_per_token; // all layers
    uint64_t activation_bytes;   // of a step of `rows` rows
    uint64_t free_bytes;         // for the KV cache; 0 when the model does not fit
    int64_t kv_tokens;           // in whole pages of 16
    bool fits;                   // at least one page is left
} fit;
// kv_page_bytes: keys of one KV head in a page of FIT_PAGE_TOKENS. memory_bytes: what may be used
// in all.
#define FIT_PAGE_TOKENS 16 // engine/kv.h
fit fit_compute(const model_shape *s, uint64_t weight_bytes, uint64_t kv_page_bytes,
                uint64_t memory_bytes, int rows);
// How many requests of `context` tokens find room at a time.
int64_t fit_requests(const fit *f, int context);

#endif
