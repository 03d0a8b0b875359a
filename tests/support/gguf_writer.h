// Writes GGUF files for tests: models with random weights, and copies of a real one in another
// format.
#ifndef TESTS_SUPPORT_GGUF_WRITER_H
#define TESTS_SUPPORT_GGUF_WRITER_H
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "model/gguf.h"

typedef struct gguf_writer gguf_writer;

gguf_writer *gguf_writer_new(void);
void gguf_writer_free(gguf_writer *w);
void gguf_put_string(gguf_writer *w, const char *key, const char *value);
void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_put_f32(gguf_writer *w, const char *key, float value);
void gguf_put_strings(gguf_writer *w, const char *key, const char *const *values, size_t n);
void gguf_put_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t n);
// n_out 0: a vector. data (bytes long) is copied.
void gguf_put_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_in, uint64_t n_out,
                     const void *data, size_t bytes);
void gguf_writer_bytes(gguf_writer *w, buf *out); // appends the whole file

// Writes to fd a copy of g whose tensors are all F32, dequantised; fails the process on an I/O
// error.
void gguf_copy_as_f32(const gguf *g, int fd);

#endif
