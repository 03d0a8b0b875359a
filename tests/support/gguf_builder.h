// Builds small GGUF files in memory for tests: valid ones, and ones that lie about anything. Items
// and tensors stay editable until gguf_builder_write. Fatal on misuse; one thread.
#ifndef TESTS_SUPPORT_GGUF_BUILDER_H
#define TESTS_SUPPORT_GGUF_BUILDER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "model/gguf.h"

typedef struct built_key {
    buf key;
    uint32_t type; // gguf_type, or anything
    buf value;     // as in the file
} built_key;

typedef struct built_tensor {
    buf name;
    uint64_t n_name; // the length that is written
    uint32_t type, n_dims;
    uint64_t dims[8];
    uint64_t
        offset; // of the data, written when keep_offset; else: behind the tensor before, aligned
    bool keep_offset;
    buf data;
} built_tensor;

typedef struct gguf_builder {
    char magic[4];
    uint32_t version, alignment; // the padding that is made; announced by general.alignment only
    uint64_t n_keys, n_tensors;  // what the header says; UINT64_MAX - 1: the truth
    built_key keys[96];
    built_tensor tensors[96];
    size_t used_keys, used_tensors;
} gguf_builder;

#define BUILDER_TRUTH (UINT64_MAX - 1)

void gguf_builder_init(gguf_builder *b);
void gguf_builder_release(gguf_builder *b);

// Keys: a second value for the same key replaces the first; the result is borrowed.
built_key *builder_key(gguf_builder *b, const char *key); // NULL: none
built_key *builder_append_key(gguf_builder *b, const char *key, uint32_t type);
built_key *builder_raw(gguf_builder *b, const char *key, uint32_t type, const void *p, size_t n);
void builder_u32(gguf_builder *b, const char *key, uint32_t v);
void builder_f32(gguf_builder *b, const char *key, float v);
void builder_bool(gguf_builder *b, const char *key, bool v);
void builder_string(gguf_builder *b, const char *key, const char *v);
void builder_strings(gguf_builder *b, const char *key, const char *const *v, size_t n);
void builder_i32s(gguf_builder *b, const char *key, const int32_t *v, size_t n);
void builder_remove_key(gguf_builder *b, const char *key);

// data NULL: zeros of the size that the type and dims ask for.
built_tensor *builder_tensor(gguf_builder *b, const char *name); // NULL: none
built_tensor *builder_add_tensor(gguf_builder *b, const char *name, uint32_t type, uint64_t dim0,
                                 uint64_t dim1, const void *data);
// Any type: data has `bytes` bytes and is copied. dim1 0: a vector.
built_tensor *builder_put_tensor(gguf_builder *b, const char *name, uint32_t type, uint64_t dim0,
                                 uint64_t dim1, const void *data, size_t bytes);
void builder_remove_tensor(gguf_builder *b, const char *name);

void gguf_builder_write(const gguf_builder *b, buf *out); // appends the file

// A whole little model with a byte-level BPE vocabulary (pre "gpt-2", ChatML's control tokens) and
// weights drawn from seed: 2 layers of width 32, 4 query and 2 KV heads of 8, feed-forward 64,
// context 256, Q8_0 embedding (tied), F32 elsewhere. arch: "llama", "qwen2" or "qwen3".
void builder_small_model(gguf_builder *b, const char *arch, uint64_t seed);
#define SMALL_LAYERS 2
#define SMALL_DIM 32
#define SMALL_HEADS 4
#define SMALL_KV_HEADS 2
#define SMALL_HEAD_DIM 8
#define SMALL_INTERMEDIATE 64
#define SMALL_CONTEXT 256

#endif
