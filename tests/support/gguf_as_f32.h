// Copies of real models in another format, for tests.
#ifndef TESTS_SUPPORT_GGUF_AS_F32_H
#define TESTS_SUPPORT_GGUF_AS_F32_H
#include "model/gguf.h"

// Writes to fd a copy of g whose tensors are all F32, dequantised; ends the process on an I/O
// error.
void gguf_copy_as_f32(const gguf *g, int fd);

#endif
