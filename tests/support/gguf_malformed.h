// The catalogue of malformed GGUF files: each a small file that is wrong in one way, and what the
// error about it must say. Shared by unit tests, the fuzzer's seeds and tests of the command line.
#ifndef TESTS_SUPPORT_GGUF_MALFORMED_H
#define TESTS_SUPPORT_GGUF_MALFORMED_H
#include "tests/support/gguf_builder.h"

typedef struct malformed malformed;
struct malformed {
    const char *name;                                  // of the kind: unique, words-with-dashes
    const char *expect;                                // a part of the error message
    void (*edit)(gguf_builder *b, const malformed *m); // what it does to a tiny model; may be NULL
    const char *arch;                                  // NULL: llama
    const char *what;                                  // key or tensor
    const char *text;                                  // a value
    uint64_t n;                                        // a value
    double x;                                          // a value
    size_t cut;                                        // bytes taken off the end of the file
};

size_t malformed_count(void);
const malformed *malformed_at(size_t i);
void malformed_write(const malformed *m, buf *out); // appends the file

// One table per layer: file format, metadata of a model, tensors of a model, tokenizer.
const malformed *malformed_format(size_t *n);
const malformed *malformed_tensor_table(size_t *n);
const malformed *malformed_shape(size_t *n);
const malformed *malformed_weights(size_t *n);
const malformed *malformed_tokenizer(size_t *n);

#endif
