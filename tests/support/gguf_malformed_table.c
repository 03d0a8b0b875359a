// Malformed files, second table: tensor rows with impossible names, shapes, types and places. The
// victim is blk.0.ffn_up.weight of the tiny model: F32, 32 x 64.
#include "tests/support/gguf_malformed.h"
#include <string.h>

#define HUGE UINT64_MAX
#define SIGN (UINT64_C(1) << 63)
#define VICTIM "tensor 'blk.0.ffn_up.weight'"

static built_tensor *victim(gguf_builder *b) { return builder_tensor(b, "blk.0.ffn_up.weight"); }

static void rename_to(gguf_builder *b, const malformed *m) {
    built_tensor *t = victim(b);
    buf_clear(&t->name);
    buf_puts(&t->name, m->what);
    t->n_name = t->name.len;
}

static void name_with_nul(gguf_builder *b, const malformed *m) {
    (void)m;
    victim(b)->name.data[5] = '\0';
}

static void name_length(gguf_builder *b, const malformed *m) {
    built_tensor *t = victim(b);
    for (uint64_t i = 0; i < m->n; i++)
        buf_puts(&t->name, "n");
    t->n_name = t->name.len;
}

static void name_claims(gguf_builder *b, const malformed *m) { victim(b)->n_name = m->n; }
static void n_dims(gguf_builder *b, const malformed *m) { victim(b)->n_dims = (uint32_t)m->n; }
static void dim0(gguf_builder *b, const malformed *m) { victim(b)->dims[0] = m->n; }
static void dim1(gguf_builder *b, const malformed *m) { victim(b)->dims[1] = m->n; }

static void dim2(gguf_builder *b, const malformed *m) {
    victim(b)->n_dims = 3;
    victim(b)->dims[2] = m->n;
}

static void dim3(gguf_builder *b, const malformed *m) {
    victim(b)->n_dims = 4;
    victim(b)->dims[2] = 1;
    victim(b)->dims[3] = m->n;
}

static void all_dims(gguf_builder *b, const malformed *m) {
    victim(b)->n_dims = 4;
    for (int i = 0; i < 4; i++)
        victim(b)->dims[i] = m->n;
}

static void type(gguf_builder *b, const malformed *m) { victim(b)->type = (uint32_t)m->n; }

static void misfit(gguf_builder *b, const malformed *m) {
    type(b, m);
    victim(b)->dims[0] = 33;
}

static void place(gguf_builder *b, const malformed *m) {
    victim(b)->keep_offset = true;
    victim(b)->offset = m->n;
}

static void place_64_aligned(gguf_builder *b, const malformed *m) {
    builder_u32(b, "general.alignment", 64);
    b->alignment = 64;
    place(b, m);
}

// Two tensors, the second at offset n of the first one's 128 bytes.
static void overlap(gguf_builder *b, const malformed *m) {
    gguf_builder_release(b);
    builder_add_tensor(b, "first", 0, 32, 0, NULL);
    built_tensor *t = builder_add_tensor(b, "second", 0, 32, 0, NULL);
    t->keep_offset = true;
    t->offset = m->n;
}

static void around(gguf_builder *b, const malformed *m) { // the second lies before and reaches in
    overlap(b, m);
    b->tensors[0].keep_offset = true;
    b->tensors[0].offset = 32;
}

// One tensor of n values: the file ends with its row, padding and data.
static void alone(gguf_builder *b, const malformed *m) {
    gguf_builder_release(b);
    builder_add_tensor(b, "alone.in.the.world", 0, m->n, 0, NULL);
}

static void row_only(gguf_builder *b, const malformed *m) { // nothing after the row
    alone(b, m);
    b->alignment = 1;
    buf_clear(&b->tensors[0].data);
}

// Two rows and nothing else: the file can end anywhere in the second.
static void two_rows(gguf_builder *b, const malformed *m) {
    row_only(b, m);
    buf_puts(&b->tensors[0].name, ".so.long.that.the.count.fits");
    b->tensors[0].n_name = b->tensors[0].name.len;
    builder_add_tensor(b, "two", 0, 8, 0, NULL);
    buf_clear(&b->tensors[1].data);
}

static const malformed rows[] = {
    {.name = "name-empty", .expect = "the tensor's name at offset", .edit = rename_to, .what = ""},
    {.name = "name-65-bytes",
     .expect = "claims 65 bytes; the limit is 64",
     .edit = name_length,
     .n = 46},
    {.name = "name-2-64",
     .expect = "claims 18446744073709551615 bytes",
     .edit = name_claims,
     .n = HUGE},
    {.name = "name-2-63",
     .expect = "claims 9223372036854775808 bytes",
     .edit = name_claims,
     .n = SIGN},
    {.name = "name-with-nul", .expect = "name at offset", .edit = name_with_nul},
    {.name = "name-with-newline",
     .expect = "not printable ASCII",
     .edit = rename_to,
     .what = "a\nb"},
    {.name = "name-with-space", .expect = "not printable ASCII", .edit = rename_to, .what = "a b"},
    {.name = "name-with-escape",
     .expect = "not printable ASCII",
     .edit = rename_to,
     .what = "a\033[2J"},
    {.name = "name-not-ascii",
     .expect = "not printable ASCII",
     .edit = rename_to,
     .what = "\xe4\xbd\xa0"},
    {.name = "name-not-utf8",
     .expect = "not printable ASCII",
     .edit = rename_to,
     .what = "\xc0\x80"},
    {.name = "name-twice",
     .expect = "tensor 'blk.0.ffn_gate.weight' appears twice",
     .edit = rename_to,
     .what = "blk.0.ffn_gate.weight"},
    {.name = "dims-none", .expect = VICTIM ": 0 dimensions", .edit = n_dims, .n = 0},
    {.name = "dims-five", .expect = VICTIM ": 5 dimensions", .edit = n_dims, .n = 5},
    {.name = "dims-max", .expect = "4294967295 dimensions", .edit = n_dims, .n = UINT32_MAX},
    {.name = "dim0-zero", .expect = VICTIM ": dimension 0 is 0", .edit = dim0, .n = 0},
    {.name = "dim1-zero", .expect = VICTIM ": dimension 1 is 0", .edit = dim1, .n = 0},
    {.name = "dim2-zero", .expect = VICTIM ": dimension 2 is 0", .edit = dim2, .n = 0},
    {.name = "dim3-zero", .expect = VICTIM ": dimension 3 is 0", .edit = dim3, .n = 0},
    {.name = "dim0-2-31",
     .expect = "dimension 0 is 2147483648",
     .edit = dim0,
     .n = UINT64_C(1) << 31},
    {.name = "dim0-2-63", .expect = "dimension 0 is 9223372036854775808", .edit = dim0, .n = SIGN},
    {.name = "dim1-2-64", .expect = "dimension 1 is 18446744073709551615", .edit = dim1, .n = HUGE},
    {.name = "dim2-2-32",
     .expect = "dimension 2 is 4294967296",
     .edit = dim2,
     .n = UINT64_C(1) << 32},
    {.name = "dims-overflow",
     .expect = "takes more than 2^64 bytes",
     .edit = all_dims,
     .n = INT32_MAX},
    {.name = "dims-overflow-to-zero",
     .expect = "takes more than 2^64 bytes",
     .edit = all_dims,
     .n = 1 << 30},
    {.name = "dims-over-file", .expect = "is it cut off?", .edit = dim1, .n = 1 << 20},
    {.name = "dims-one-row-too-many", .expect = "overlap", .edit = dim1, .n = 65},
    {.name = "type-4-withdrawn", .expect = "unknown tensor type 4", .edit = type, .n = 4},
    {.name = "type-5-withdrawn", .expect = "unknown tensor type 5", .edit = type, .n = 5},
    {.name = "type-31-withdrawn", .expect = "unknown tensor type 31", .edit = type, .n = 31},
    {.name = "type-36-withdrawn", .expect = "unknown tensor type 36", .edit = type, .n = 36},
    {.name = "type-60-ours-alone", .expect = "unknown tensor type 60", .edit = type, .n = 60},
    {.name = "type-from-the-future", .expect = "unknown tensor type 1000", .edit = type, .n = 1000},
    {.name = "type-max", .expect = "unknown tensor type 4294967295", .edit = type, .n = UINT32_MAX},
    {.name = "misfit-q4-0", .expect = "which Q4_0 cannot hold", .edit = misfit, .n = 2},
    {.name = "misfit-q4-1", .expect = "which Q4_1 cannot hold", .edit = misfit, .n = 3},
    {.name = "misfit-q5-0", .expect = "which Q5_0 cannot hold", .edit = misfit, .n = 6},
    {.name = "misfit-q5-1", .expect = "which Q5_1 cannot hold", .edit = misfit, .n = 7},
    {.name = "misfit-q8-0", .expect = "which Q8_0 cannot hold", .edit = misfit, .n = 8},
    {.name = "misfit-q8-1", .expect = "which Q8_1 cannot hold", .edit = misfit, .n = 9},
    {.name = "misfit-q2-k", .expect = "which Q2_K cannot hold", .edit = misfit, .n = 10},
    {.name = "misfit-q3-k", .expect = "which Q3_K cannot hold", .edit = misfit, .n = 11},
    {.name = "misfit-q4-k", .expect = "which Q4_K cannot hold", .edit = misfit, .n = 12},
    {.name = "misfit-q5-k", .expect = "which Q5_K cannot hold", .edit = misfit, .n = 13},
    {.name = "misfit-q6-k", .expect = "which Q6_K cannot hold", .edit = misfit, .n = 14},
    {.name = "misfit-q8-k", .expect = "which Q8_K cannot hold", .edit = misfit, .n = 15},
    {.name = "misfit-iq4-nl", .expect = "which IQ4_NL cannot hold", .edit = misfit, .n = 20},
    {.name = "misfit-iq4-xs", .expect = "which IQ4_XS cannot hold", .edit = misfit, .n = 23},
    {.name = "misfit-mxfp4", .expect = "which MXFP4 cannot hold", .edit = misfit, .n = 39},
    {.name = "misfit-half-a-block",
     .expect = "is 32, which Q4_K cannot hold",
     .edit = type,
     .n = 12},
    {.name = "place-odd", .expect = "is not a multiple of 32", .edit = place, .n = 33},
    {.name = "place-odd-for-64",
     .expect = "is not a multiple of 64",
     .edit = place_64_aligned,
     .n = 96},
    {.name = "place-after-end",
     .expect = VICTIM ": 8192 bytes of data at offset 1048576",
     .edit = place,
     .n = 1 << 20},
    {.name = "place-2-63", .expect = "is it cut off?", .edit = place, .n = SIGN},
    {.name = "place-wraps", .expect = "is it cut off?", .edit = place, .n = HUGE - 31},
    {.name = "place-of-another", .expect = "overlap", .edit = place, .n = 0},
    {.name = "overlap-same", .expect = "'first' and 'second' overlap", .edit = overlap, .n = 0},
    {.name = "overlap-middle", .expect = "'first' and 'second' overlap", .edit = overlap, .n = 64},
    {.name = "overlap-last-bytes",
     .expect = "'first' and 'second' overlap",
     .edit = overlap,
     .n = 96},
    {.name = "overlap-reversed", .expect = "'second' and 'first' overlap", .edit = around, .n = 0},
    {.name = "data-one-byte-short",
     .expect = "tensor 'alone.in.the.world': 128 bytes of data",
     .edit = alone,
     .n = 32,
     .cut = 1},
    {.name = "data-missing",
     .expect = "before its tensor data would begin",
     .edit = alone,
     .n = 32,
     .cut = 128},
    {.name = "padding-missing",
     .expect = "before its tensor data would begin",
     .edit = row_only,
     .n = 32},
    {.name = "offset-cut",
     .expect = "tensor 'alone.in.the.world': the file ends inside the offset",
     .edit = row_only,
     .n = 32,
     .cut = 1},
    {.name = "type-cut",
     .expect = "ends inside the tensor's type",
     .edit = row_only,
     .n = 32,
     .cut = 9},
    {.name = "dims-cut",
     .expect = "ends inside the dimensions",
     .edit = row_only,
     .n = 32,
     .cut = 13},
    {.name = "n-dims-cut",
     .expect = "ends inside the number of dimensions",
     .edit = two_rows,
     .n = 32,
     .cut = 21},
    {.name = "name-length-cut",
     .expect = "ends inside the tensor's name",
     .edit = two_rows,
     .n = 32,
     .cut = 30},
    {.name = "name-cut",
     .expect = "ends inside the tensor's name",
     .edit = two_rows,
     .n = 32,
     .cut = 25},
    {.name = "row-too-short",
     .expect = "bytes follow the metadata",
     .edit = row_only,
     .n = 32,
     .cut = 21},
};

const malformed *malformed_tensor_table(size_t *n) {
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
