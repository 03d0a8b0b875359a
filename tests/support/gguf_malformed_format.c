// Malformed files, first table: header and metadata pairs that lie about themselves.
#include "tests/support/gguf_malformed.h"
#include <string.h>

#define HUGE UINT64_MAX
#define SIGN (UINT64_C(1) << 63)

static void magic(gguf_builder *b, const malformed *m) { memcpy(b->magic, m->what, 4); }
static void version(gguf_builder *b, const malformed *m) { b->version = (uint32_t)m->n; }
static void claim_keys(gguf_builder *b, const malformed *m) { b->n_keys = m->n; }
static void claim_tensors(gguf_builder *b, const malformed *m) { b->n_tensors = m->n; }
static void one_key_more(gguf_builder *b, const malformed *m) { b->n_keys = b->used_keys + m->n; }
static void one_key_less(gguf_builder *b, const malformed *m) { b->n_keys = b->used_keys - m->n; }

// A file of nothing but the key "test.key" with value type n; the row adds the value.
static buf *lonely(gguf_builder *b, uint32_t type) {
    gguf_builder_release(b);
    return &builder_append_key(b, "test.key", type)->value;
}

static size_t size_of(uint64_t type) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 9, 0, 8, 8, 8}; // a string: "x"
    return type < sizeof sizes ? sizes[type] : 0;
}

static void put_value(buf *out, uint64_t type) {
    if (type == GGUF_STRING) {
        buf_put_u64(out, 1);
        buf_puts(out, "x");
        return;
    }
    for (size_t i = 0; i < size_of(type); i++)
        buf_put_u8(out, 0);
}

static void scalar(gguf_builder *b, const malformed *m) {
    put_value(lonely(b, (uint32_t)m->n), m->n);
}

static void pair_of(gguf_builder *b, const malformed *m) { // an array of two
    buf *v = lonely(b, GGUF_ARRAY);
    buf_put_u32(v, (uint32_t)m->n);
    buf_put_u64(v, 2);
    put_value(v, m->n);
    put_value(v, m->n);
}

static void array_of(gguf_builder *b, uint32_t element, uint64_t n) { // room for one element
    buf *v = lonely(b, GGUF_ARRAY);
    buf_put_u32(v, element);
    buf_put_u64(v, n);
    put_value(v, element);
}
static void array_u8(gguf_builder *b, const malformed *m) { array_of(b, GGUF_U8, m->n); }
static void array_u64(gguf_builder *b, const malformed *m) { array_of(b, GGUF_U64, m->n); }
static void array_string(gguf_builder *b, const malformed *m) { array_of(b, GGUF_STRING, m->n); }
static void array_element(gguf_builder *b, const malformed *m) { array_of(b, (uint32_t)m->n, 1); }

static void value_type(gguf_builder *b, const malformed *m) {
    buf_put_u64(lonely(b, (uint32_t)m->n), 0);
}

static void bad_bool(gguf_builder *b, const malformed *m) {
    buf_put_u8(lonely(b, GGUF_BOOL), (uint8_t)m->n);
}

static void bad_bools(gguf_builder *b, const malformed *m) {
    buf *v = lonely(b, GGUF_ARRAY);
    buf_put_u32(v, GGUF_BOOL);
    buf_put_u64(v, 3);
    buf_put_u16(v, 1);
    buf_put_u8(v, (uint8_t)m->n);
}

static void string_length(gguf_builder *b, const malformed *m) {
    buf *v = lonely(b, GGUF_STRING);
    buf_put_u64(v, m->n);
    buf_puts(v, "text");
}

static void string_in_array(gguf_builder *b, const malformed *m) {
    buf *v = lonely(b, GGUF_ARRAY);
    buf_put_u32(v, GGUF_STRING);
    buf_put_u64(v, 2);
    buf_put_u64(v, 4);
    buf_puts(v, "text");
    buf_put_u64(v, m->n);
    buf_puts(v, "text");
}

static void key_text(gguf_builder *b, const malformed *m) {
    builder_append_key(b, m->what, GGUF_U8);
    buf_put_u8(&b->keys[b->used_keys - 1].value, 0);
}

static void key_with_nul(gguf_builder *b, const malformed *m) {
    key_text(b, m);
    b->keys[b->used_keys - 1].key.data[2] = '\0';
}

static void key_of_length(gguf_builder *b, const malformed *m) {
    built_key *k = builder_append_key(b, "", GGUF_U8);
    for (uint64_t i = 0; i < m->n; i++)
        buf_puts(&k->key, "k");
    buf_put_u8(&k->value, 0);
}

// The first key claims n bytes: what the builder takes for its text begins with the length.
static void key_claims(gguf_builder *b, const malformed *m) {
    gguf_builder_release(b);
    b->n_keys = 1;
    b->alignment = 1;
    built_tensor *t = builder_add_tensor(b, "test.key.and.then.some", 0, 1, 0, NULL);
    t->n_name = m->n; // a tensor row begins like a pair: with a counted name
    b->n_tensors = 0;
}

// A long pair and a short one: the file can end in the second one's first number.
static void two_keys(gguf_builder *b, const malformed *m) {
    buf *v = lonely(b, GGUF_STRING);
    buf_put_u64(v, strlen(m->text));
    buf_puts(v, m->text);
    key_text(b, m);
}

static void twice(gguf_builder *b, const malformed *m) {
    buf_put_u32(&builder_append_key(b, m->what, GGUF_U32)->value, (uint32_t)m->n);
}

static void twice_apart(gguf_builder *b, const malformed *m) {
    twice(b, m);
    builder_append_key(b, "zzz", GGUF_U8);
    buf_put_u8(&b->keys[b->used_keys - 1].value, 1);
    twice(b, m);
}

static void alignment(gguf_builder *b, const malformed *m) {
    builder_u32(b, "general.alignment", (uint32_t)m->n);
}

static void alignment_type(gguf_builder *b, const malformed *m) {
    put_value(&builder_append_key(b, "general.alignment", (uint32_t)m->n)->value, m->n);
}

static void alignment_array(gguf_builder *b, const malformed *m) {
    int32_t v = (int32_t)m->n;
    builder_i32s(b, "general.alignment", &v, 1);
}

static void header_only(gguf_builder *b, const malformed *m) {
    (void)m;
    gguf_builder_release(b);
}

static const malformed rows[] = {
    {.name = "magic-of-ggml", .expect = "does not begin with", .edit = magic, .what = "ggml"},
    {.name = "magic-of-ggjt", .expect = "does not begin with", .edit = magic, .what = "ggjt"},
    {.name = "magic-lower-case", .expect = "does not begin with", .edit = magic, .what = "gguf"},
    {.name = "magic-reversed", .expect = "does not begin with", .edit = magic, .what = "FUGG"},
    {.name = "magic-of-zip", .expect = "does not begin with", .edit = magic, .what = "PK\3\4"},
    {.name = "file-empty", .expect = "does not begin with", .edit = header_only, .cut = 24},
    {.name = "file-of-one-byte", .expect = "does not begin with", .edit = header_only, .cut = 23},
    {.name = "version-0", .expect = "version 0 at offset 4", .edit = version, .n = 0},
    {.name = "version-1", .expect = "version 1 at offset 4", .edit = version, .n = 1},
    {.name = "version-4", .expect = "version 4 at offset 4", .edit = version, .n = 4},
    {.name = "version-max", .expect = "version 4294967295", .edit = version, .n = UINT32_MAX},
    {.name = "big-endian-3", .expect = "big-endian", .edit = version, .n = 0x03000000},
    {.name = "big-endian-2", .expect = "big-endian", .edit = version, .n = 0x02000000},
    {.name = "ends-after-magic",
     .expect = "ends inside the header",
     .edit = header_only,
     .cut = 20},
    {.name = "ends-in-version", .expect = "ends inside the header", .edit = header_only, .cut = 18},
    {.name = "ends-in-tensor-count",
     .expect = "ends inside the header",
     .edit = header_only,
     .cut = 9},
    {.name = "ends-in-key-count",
     .expect = "ends inside the header",
     .edit = header_only,
     .cut = 1},
    {.name = "keys-2-64",
     .expect = "claims 18446744073709551615 keys",
     .edit = claim_keys,
     .n = HUGE},
    {.name = "keys-2-63",
     .expect = "claims 9223372036854775808 keys",
     .edit = claim_keys,
     .n = SIGN},
    {.name = "keys-over-limit", .expect = "the limit is 16384", .edit = claim_keys, .n = 16385},
    {.name = "keys-over-file",
     .expect = "keys, but the file has only",
     .edit = claim_keys,
     .n = 16384},
    {.name = "keys-one-too-many",
     .expect = "tensor 1 of 20: the tensor's name",
     .edit = one_key_more,
     .n = 1},
    {.name = "keys-one-too-few", .expect = "tensor 1 of", .edit = one_key_less, .n = 1},
    {.name = "keys-none-of-many", .expect = "tensor 1 of", .edit = claim_keys, .n = 0},
    {.name = "tensors-2-64",
     .expect = "claims 18446744073709551615 tensors",
     .edit = claim_tensors,
     .n = HUGE},
    {.name = "tensors-2-63",
     .expect = "claims 9223372036854775808 tensors",
     .edit = claim_tensors,
     .n = SIGN},
    {.name = "tensors-over-limit",
     .expect = "the limit is 65536",
     .edit = claim_tensors,
     .n = 65537},
    {.name = "tensors-over-file",
     .expect = "bytes follow the metadata",
     .edit = claim_tensors,
     .n = 65536},
    {.name = "tensors-one-too-many", .expect = "tensor 21 of 21", .edit = claim_tensors, .n = 21},
    {.name = "u8-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_U8, .cut = 1},
    {.name = "i8-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_I8, .cut = 1},
    {.name = "u16-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_U16, .cut = 1},
    {.name = "i16-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_I16, .cut = 1},
    {.name = "u32-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_U32, .cut = 1},
    {.name = "i32-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_I32, .cut = 1},
    {.name = "f32-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_F32, .cut = 1},
    {.name = "bool-cut",
     .expect = "ends inside the value",
     .edit = scalar,
     .n = GGUF_BOOL,
     .cut = 1},
    {.name = "u64-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_U64, .cut = 1},
    {.name = "i64-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_I64, .cut = 1},
    {.name = "f64-cut", .expect = "ends inside the value", .edit = scalar, .n = GGUF_F64, .cut = 1},
    {.name = "string-cut",
     .expect = "ends inside the string",
     .edit = scalar,
     .n = GGUF_STRING,
     .cut = 1},
    {.name = "string-length-cut",
     .expect = "ends inside the string",
     .edit = scalar,
     .n = GGUF_STRING,
     .cut = 2},
    {.name = "value-type-cut",
     .expect = "ends inside the value's type",
     .edit = scalar,
     .n = GGUF_U64,
     .cut = 9},
    {.name = "key-cut", .expect = "ends inside the key", .edit = key_claims, .n = 100},
    {.name = "key-length-cut",
     .expect = "ends inside the key",
     .edit = two_keys,
     .what = "second",
     .text = "something of forty bytes, more or less...",
     .cut = 15},
    {.name = "array-u8-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_U8,
     .cut = 1},
    {.name = "array-i8-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_I8,
     .cut = 1},
    {.name = "array-u16-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_U16,
     .cut = 1},
    {.name = "array-i16-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_I16,
     .cut = 1},
    {.name = "array-u32-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_U32,
     .cut = 1},
    {.name = "array-i32-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_I32,
     .cut = 1},
    {.name = "array-f32-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_F32,
     .cut = 1},
    {.name = "array-bool-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_BOOL,
     .cut = 1},
    {.name = "array-u64-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_U64,
     .cut = 1},
    {.name = "array-i64-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_I64,
     .cut = 1},
    {.name = "array-f64-cut",
     .expect = "claims 2 elements, but only",
     .edit = pair_of,
     .n = GGUF_F64,
     .cut = 1},
    {.name = "array-string-cut",
     .expect = "element 1: the file ends",
     .edit = pair_of,
     .n = GGUF_STRING,
     .cut = 1},
    {.name = "array-head-cut",
     .expect = "ends inside the array's head",
     .edit = pair_of,
     .n = GGUF_U8,
     .cut = 3},
    {.name = "array-type-cut",
     .expect = "ends inside the array's head",
     .edit = pair_of,
     .n = GGUF_U8,
     .cut = 11},
    {.name = "array-u8-2-64",
     .expect = "claims 18446744073709551615 elements",
     .edit = array_u8,
     .n = HUGE},
    {.name = "array-u8-over-limit",
     .expect = "the limit is 16777216",
     .edit = array_u8,
     .n = 16777217},
    {.name = "array-u8-over-file", .expect = "elements, but only", .edit = array_u8, .n = 16777216},
    {.name = "array-u64-wraps",
     .expect = "the limit is",
     .edit = array_u64,
     .n = UINT64_C(1) << 61},
    {.name = "array-u64-one-too-many",
     .expect = "claims 2 elements, but only 8",
     .edit = array_u64,
     .n = 2},
    {.name = "array-string-2-64",
     .expect = "claims 18446744073709551615 elements",
     .edit = array_string,
     .n = HUGE},
    {.name = "array-string-one-too-many",
     .expect = "claims 2 elements, but only 9",
     .edit = array_string,
     .n = 2},
    {.name = "array-of-arrays",
     .expect = "array of arrays",
     .edit = array_element,
     .n = GGUF_ARRAY},
    {.name = "array-of-type-13",
     .expect = "unknown element type 13",
     .edit = array_element,
     .n = 13},
    {.name = "array-of-type-max",
     .expect = "unknown element type 4294967295",
     .edit = array_element,
     .n = UINT32_MAX},
    {.name = "value-type-13",
     .expect = "key 'test.key': unknown value type 13",
     .edit = value_type,
     .n = 13},
    {.name = "value-type-256", .expect = "unknown value type 256", .edit = value_type, .n = 256},
    {.name = "value-type-max",
     .expect = "unknown value type 4294967295",
     .edit = value_type,
     .n = UINT32_MAX},
    {.name = "bool-2", .expect = "is 2, neither 0 nor 1", .edit = bad_bool, .n = 2},
    {.name = "bool-255", .expect = "is 255, neither 0 nor 1", .edit = bad_bool, .n = 255},
    {.name = "bool-in-array", .expect = "is 7, neither 0 nor 1", .edit = bad_bools, .n = 7},
    {.name = "string-2-64",
     .expect = "claims 18446744073709551615 bytes",
     .edit = string_length,
     .n = HUGE},
    {.name = "string-2-63",
     .expect = "claims 9223372036854775808 bytes",
     .edit = string_length,
     .n = SIGN},
    {.name = "string-over-limit",
     .expect = "the limit is 67108864",
     .edit = string_length,
     .n = (64u << 20) + 1},
    {.name = "string-one-too-long",
     .expect = "ends inside the string",
     .edit = string_length,
     .n = 5},
    {.name = "string-in-array-2-64",
     .expect = "element 1: the string at",
     .edit = string_in_array,
     .n = HUGE},
    {.name = "string-in-array-too-long",
     .expect = "element 1: the file ends",
     .edit = string_in_array,
     .n = 5},
    {.name = "key-empty", .expect = "is empty", .edit = key_of_length, .n = 0},
    {.name = "key-over-limit", .expect = "the limit is 65535", .edit = key_of_length, .n = 65536},
    {.name = "key-2-64", .expect = "the key at offset 24 claims", .edit = key_claims, .n = HUGE},
    {.name = "key-2-63", .expect = "the key at offset 24 claims", .edit = key_claims, .n = SIGN},
    {.name = "key-with-nul",
     .expect = "not printable ASCII",
     .edit = key_with_nul,
     .what = "ab.cd"},
    {.name = "key-with-newline",
     .expect = "not printable ASCII",
     .edit = key_text,
     .what = "ab\ncd"},
    {.name = "key-with-space", .expect = "not printable ASCII", .edit = key_text, .what = "ab cd"},
    {.name = "key-with-escape",
     .expect = "not printable ASCII",
     .edit = key_text,
     .what = "ab\033[1m"},
    {.name = "key-with-delete",
     .expect = "not printable ASCII",
     .edit = key_text,
     .what = "ab\177"},
    {.name = "key-not-ascii",
     .expect = "not printable ASCII",
     .edit = key_text,
     .what = "k\xc3\xa9y"},
    {.name = "key-not-utf8", .expect = "not printable ASCII", .edit = key_text, .what = "k\xff"},
    {.name = "key-twice",
     .expect = "key 'llama.block_count' appears twice",
     .edit = twice,
     .what = "llama.block_count",
     .n = 2},
    {.name = "key-twice-new",
     .expect = "key 'new.key' appears twice",
     .edit = twice_apart,
     .what = "new.key",
     .n = 2},
    {.name = "key-twice-other-type",
     .expect = "'general.architecture' appears twice",
     .edit = twice,
     .what = "general.architecture"},
    {.name = "alignment-0", .expect = "'general.alignment' is 0", .edit = alignment, .n = 0},
    {.name = "alignment-1", .expect = "'general.alignment' is 1;", .edit = alignment, .n = 1},
    {.name = "alignment-4", .expect = "'general.alignment' is 4;", .edit = alignment, .n = 4},
    {.name = "alignment-no-power",
     .expect = "'general.alignment' is 24",
     .edit = alignment,
     .n = 24},
    {.name = "alignment-odd", .expect = "'general.alignment' is 33", .edit = alignment, .n = 33},
    {.name = "alignment-over-limit",
     .expect = "'general.alignment' is 131072",
     .edit = alignment,
     .n = 131072},
    {.name = "alignment-2-31",
     .expect = "'general.alignment' is 2147483648",
     .edit = alignment,
     .n = 1u << 31},
    {.name = "alignment-max",
     .expect = "'general.alignment' is 4294967295",
     .edit = alignment,
     .n = UINT32_MAX},
    {.name = "alignment-u64",
     .expect = "has type u64; it must be u32",
     .edit = alignment_type,
     .n = GGUF_U64},
    {.name = "alignment-i32",
     .expect = "has type i32; it must be u32",
     .edit = alignment_type,
     .n = GGUF_I32},
    {.name = "alignment-string",
     .expect = "has type string; it must be u32",
     .edit = alignment_type,
     .n = GGUF_STRING},
    {.name = "alignment-array",
     .expect = "has type array; it must be u32",
     .edit = alignment_array,
     .n = 32},
};

const malformed *malformed_format(size_t *n) {
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
