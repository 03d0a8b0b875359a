// Random low-rank adapters for the tiny models, and the model that one would make when merged.
#ifndef TESTS_SUPPORT_TINY_LORA_H
#define TESTS_SUPPORT_TINY_LORA_H
#include "base/buf.h"
#include "tests/support/tiny_model.h"

#define TINY_ALPHA 8.0

// Appends a GGUF adapter of that rank for every matrix of t's layers (only: those whose name holds
// this text; NULL: all), in type (F32, F16 or BF16).
void tiny_lora_bytes(const tiny_model *t, int rank, uint32_t seed, weight_type type,
                     const char *only, buf *out);
// Writes such an adapter (rank 4, F32, all matrices) as DIR/<tenant>/<id>.gguf, id[64] as import
// names it: what worker/adapters.h finds.
void tiny_lora_put(const char *dir, const char *tenant, const tiny_model *t, const char *name,
                   uint32_t seed, char *id);
// Adds adapter (bytes as above, F32) to the F32 matrices of model bytes in place.
void tiny_lora_merge(buf *model_bytes, const buf *adapter);

#endif
