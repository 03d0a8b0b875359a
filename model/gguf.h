// GGUF model files (version 2 and 3, little-endian), read through mmap, and directories of Hugging
// Face that are presented as such (model/hf.h). Every count, offset, size
// and string is checked against the file before use, products are overflow-checked, tensors may not
// overlap or leave the file, and caps bound every count. Read-only after open: any thread.
//
// What changes on disk afterwards: header, metadata and tensor table are copied to private memory
// at open, so names, keys and strings stay valid whatever happens to the file. Tensor data stays
// mapped: a file that is truncated in place while weights are read raises SIGBUS (replace model
// files by rename, never in place). gguf_unchanged tells before and after a long load.
// Source: the GGUF specification (ggml/docs/gguf.md).
#ifndef MODEL_GGUF_H
#define MODEL_GGUF_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct gguf gguf;

typedef enum gguf_type { // numbered as in the file
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
} gguf_type;

typedef struct gguf_string { // borrowed from the open file, not NUL-terminated; any bytes
    const char *p;
    size_t n;
} gguf_string;

typedef struct gguf_tensor {
    gguf_string name; // printable ASCII, 1..64 bytes
    uint32_t type;    // ggml_type; weight_type in kernels/ops.h has the same numbers
    int n_dims;
    uint64_t dims[4]; // dims[0] is the contiguous one (n_in); unused ones are 1
    const void *data; // in the mapping, any alignment; NULL: made by gguf_load
    uint64_t bytes;
    const int32_t *order; // as weight_source.order (kernels/ops.h); mostly NULL
} gguf_tensor;

int gguf_open(const char *path, gguf **out,
              err *e); // ERR_IO or ERR_FORMAT: offset or key in a line
// Borrowed bytes (tests, fuzzing); p outlives the result.
int gguf_open_memory(const void *p, size_t n, gguf **out, err *e);
void gguf_close(gguf *g);             // NULL is fine
uint32_t gguf_version(const gguf *g); // 0: a directory
size_t gguf_n_tensors(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i);    // in file order; i < n_tensors
const gguf_tensor *gguf_find(const gguf *g, const char *name); // NULL: none
uint64_t gguf_file_bytes(const gguf *g); // of a directory: of all its safetensors files
// Bytes of header, metadata and tensor table: what tells one revision of a file from another.
const void *gguf_head(const gguf *g, size_t *n);
// Writes the bytes of a tensor whose data is NULL: type WT_INT4, from a directory's packed words.
void gguf_load(const gguf *g, const gguf_tensor *t, void *to);
// What the files hold besides that head, part by part: the tensors; of a directory the files' heads
// and their tensors as stored. gguf_read copies n bytes of part i from `at` on, which lie inside
// it. For looking at a few pages: it reads the file, not the mapping, so that a file cut short
// meanwhile is ERR_IO and no SIGBUS.
size_t gguf_n_stored(const gguf *g);
uint64_t gguf_stored_bytes(const gguf *g, size_t i);
int gguf_read(const gguf *g, size_t i, uint64_t at, void *to, size_t n, err *e);
// ERR_IO when an open file no longer has the size or modification time it was opened with.
int gguf_unchanged(const gguf *g, err *e);
const char *gguf_tensor_type_name(uint32_t type); // "Q4_K"; "?" when unknown

// Metadata; a look-up is a binary search. The get functions return false when the key is absent; a
// key of an unfitting type is false too and gguf_has tells which.
bool gguf_has(const gguf *g, const char *key, gguf_type *kind); // kind may be NULL
const char *gguf_type_name(gguf_type kind);                     // "u32", "array", ...
// Any integer type that is not negative, and bool.
bool gguf_get_u64(const gguf *g, const char *key, uint64_t *out);
bool gguf_get_f64(const gguf *g, const char *key, double *out); // float types and integers
bool gguf_get_bool(const gguf *g, const char *key, bool *out);
bool gguf_get_string(const gguf *g, const char *key, gguf_string *out);
bool gguf_array(const gguf *g, const char *key, gguf_type *element, uint64_t *n);
// One element, in constant time; false as well when i is past the end.
bool gguf_array_string(const gguf *g, const char *key, uint64_t i, gguf_string *out);
bool gguf_array_u64(const gguf *g, const char *key, uint64_t i, uint64_t *out);
bool gguf_array_f64(const gguf *g, const char *key, uint64_t i, double *out);

#endif
