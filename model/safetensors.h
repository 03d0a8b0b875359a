// One safetensors file, read through mmap. The header is copied at open and every name, type, shape
// and offset in it is checked as strictly as the format's own library does: tensors cover the data
// without holes or overlaps, in whole, and nothing stands behind them. Read-only after open: any
// thread. Tensor data stays mapped: replace such files by rename, never in place.
// Source: github.com/huggingface/safetensors, "Format".
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct safetensors safetensors;

typedef struct safetensor {
    const char *name;  // printable ASCII
    const char *dtype; // "BF16"; one of the format's own names
    int n_dims;        // 0: a single number
    uint64_t dims[4];  // the last of them is contiguous; unused ones are 1
    uint64_t offset;   // of the data in the file
    uint64_t bytes;
    const void *data; // in the mapping; any alignment
} safetensor;

// ERR_IO or ERR_FORMAT, one line with tensor or offset. The message begins with the path.
int safetensors_open(const char *path, safetensors **out, err *e);
// Borrowed bytes (tests, fuzzing); p outlives the result.
int safetensors_open_memory(const void *p, size_t n, safetensors **out, err *e);
void safetensors_close(safetensors *f); // NULL is fine
size_t safetensors_count(const safetensors *f);
const safetensor *safetensors_at(const safetensors *f, size_t i);           // by offset; i < count
const safetensor *safetensors_find(const safetensors *f, const char *name); // NULL: none
// GGUF's number of t's type. ERR_UNSUPPORTED names the tensor unless it is F32, F16 or BF16.
int safetensor_float_type(const safetensor *t, uint32_t *type, err *e);
uint64_t safetensors_file_bytes(const safetensors *f);
// Bytes before the data: length and header.
uint64_t safetensors_head_bytes(const safetensors *f);
// Copies n bytes of the file from `at` on, which lie inside it, not through the mapping: a file cut
// short meanwhile is ERR_IO and no SIGBUS.
int safetensors_read(const safetensors *f, uint64_t at, void *to, size_t n, err *e);
// ERR_IO when the open file no longer has the size or modification time it was opened with.
int safetensors_unchanged(const safetensors *f, err *e);

#endif
