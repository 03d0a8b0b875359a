// Shared by gguf*.c and hf*.c only: the open file and the parsing steps.
#ifndef MODEL_GGUF_INTERNAL_H
#define MODEL_GGUF_INTERNAL_H
#include "base/arena.h"
#include "base/cursor.h"
#include "model/gguf.h"

// Caps: far above any real model, low enough that a hostile file costs little memory and time.
#define GGUF_MAX_KEYS 16384u
#define GGUF_MAX_TENSORS 65536u
#define GGUF_MAX_ARRAY (1u << 24) // elements
#define GGUF_MAX_KEY_BYTES 65535u // as the specification
#define GGUF_MAX_NAME_BYTES 64u   // as the specification
#define GGUF_MAX_STRING_BYTES (64u << 20)
#define GGUF_MAX_HEAD_BYTES (256u << 20) // header, metadata and tensor table together
#define GGUF_MAX_DIM INT32_MAX
#define GGUF_DEFAULT_ALIGNMENT 32u
#define GGUF_MAX_ALIGNMENT 65536u

typedef struct gguf_entry { // one key
    gguf_string key;
    gguf_type type;
    gguf_type element;       // of an array
    uint64_t n;              // elements of an array
    const uint8_t *value;    // the scalar, the string's bytes, or the first element
    size_t bytes;            // of a string
    const uint32_t *strings; // of an array of strings: where each starts, from value
    size_t offset;           // of the key in the file, for messages
} gguf_entry;

// Where tensors lie that are not behind their metadata in one file.
typedef struct gguf_origin gguf_origin;
struct gguf_origin {
    void (*close)(gguf_origin *o);
    int (*unchanged)(const gguf_origin *o, err *e);
    uint64_t (*stored_bytes)(const gguf_origin *o, size_t i);
    int (*read_stored)(const gguf_origin *o, size_t i, uint64_t at, void *to, size_t n, err *e);
    void (*load)(const gguf_origin *o, size_t tensor, void *to);
    size_t n_stored;
    uint64_t file_bytes;
};

struct gguf {
    gguf_origin *origin; // owned; NULL: one file
    const uint8_t *base;
    size_t n;
    int fd; // -1: borrowed memory
    int64_t mtime_s, mtime_ns;
    arena memory; // entries, tensors and their indexes
    uint32_t version;
    uint64_t alignment;
    size_t head_bytes;   // header, metadata, tensor table
    size_t data_start;   // head_bytes, aligned
    gguf_entry *entries; // ordered by key
    size_t n_entries;
    gguf_tensor *tensors;      // in file order
    const gguf_tensor **names; // ordered by name
    size_t n_tensors;
};

// Where the cursor stands in the file.
size_t gguf_position(const gguf *g, const cursor *c);
// "the file ends inside WHAT": ERR_FORMAT, with offset and size.
int gguf_ended(const gguf *g, const cursor *c, const char *what, err *e);
// A length-prefixed string of at least `least` and at most `most` bytes, borrowed from the file.
int gguf_read_string(const gguf *g, cursor *c, uint64_t least, uint64_t most, const char *what,
                     gguf_string *out, err *e);
int gguf_string_compare(gguf_string a, gguf_string b);
// Keys and names are quoted in messages and compared as C strings: only printable ASCII passes.
bool gguf_is_printable(gguf_string s);
int gguf_shown(gguf_string s); // for "%.*s": its length, cut where a message would grow too long

// Each reads its part from the cursor into g. n is the count from the header.
int gguf_parse_metadata(gguf *g, cursor *c, uint64_t n, err *e);
int gguf_parse_tensors(gguf *g, cursor *c, uint64_t n, err *e);
// Orders the tensors by name; ERR_FORMAT when two have the same.
int gguf_order_tensors(gguf *g, err *e);
// Metadata from a head without tensors (p outlives the result), tensors as given (copied; their
// names and data are borrowed). o is owned from the call on, closed on errors too.
int gguf_open_parts(const void *p, size_t n, const gguf_tensor *tensors, size_t n_tensors,
                    gguf_origin *o, gguf **out, err *e);

#endif
