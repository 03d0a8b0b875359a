// The tensor table of a GGUF file: names, shapes, types and places, each checked against the file;
// names are unique and data never overlaps. Owns nothing beyond the file's arena. Knows the block
// size of every ggml type, so that bytes follow from shapes; which types can be run is for others.
#include "model/gguf_internal.h"
#include <stdlib.h>
#include <string.h>

#define LEAST_TENSOR_BYTES                                                                         \
    33u // name length, one byte of name, dimensions, one of them, type, offset

static const struct tensor_type {
    const char *name;
    uint32_t n_values, n_bytes; // of a block
} tensor_types[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},    [60] = {"INT4", 32, 20},
};
#define FIRST_OWN_TYPE 60u // never in a file: what a directory's packed words become

#define N_TENSOR_TYPES (sizeof tensor_types / sizeof tensor_types[0])

// NULL: unknown, or withdrawn from the format.
static const struct tensor_type *type_of(uint32_t type) {
    return type < N_TENSOR_TYPES && tensor_types[type].name ? &tensor_types[type] : NULL;
}

const char *gguf_tensor_type_name(uint32_t type) {
    const struct tensor_type *t = type_of(type);
    return t ? t->name : "?";
}

static int read_dims(gguf *g, cursor *c, gguf_tensor *t, err *e) {
    size_t at = gguf_position(g, c);
    uint32_t n = cursor_u32(c);
    if (c->failed)
        return gguf_ended(g, c, "the number of dimensions", e);
    if (n < 1 || n > 4)
        return err_set(e, ERR_FORMAT, NULL, "%u dimensions at offset %zu; 1 to 4 are possible", n,
                       at);
    t->n_dims = (int)n;
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = i < n ? cursor_u64(c) : 1;
        if (c->failed)
            return gguf_ended(g, c, "the dimensions", e);
        if (t->dims[i] < 1 || t->dims[i] > GGUF_MAX_DIM)
            return err_set(e, ERR_FORMAT, NULL,
                           "dimension %u is %llu (offset %zu); 1 to %d are possible", i,
                           (unsigned long long)t->dims[i], gguf_position(g, c) - 8, GGUF_MAX_DIM);
    }
    return 0;
}

static int read_type(gguf *g, cursor *c, gguf_tensor *t, err *e) {
    size_t at = gguf_position(g, c);
    t->type = cursor_u32(c);
    if (c->failed)
        return gguf_ended(g, c, "the tensor's type", e);
    const struct tensor_type *type = type_of(t->type);
    if (!type || t->type >= FIRST_OWN_TYPE)
        return err_set(e, ERR_FORMAT, NULL, "unknown tensor type %u at offset %zu", t->type, at);
    if (t->dims[0] % type->n_values != 0)
        return err_set(e, ERR_FORMAT, NULL,
                       "dimension 0 is %llu, which %s cannot hold: its blocks have %u values",
                       (unsigned long long)t->dims[0], type->name, type->n_values);
    t->bytes = t->dims[0] / type->n_values * type->n_bytes;
    for (int i = 1; i < 4; i++)
        if (__builtin_mul_overflow(t->bytes, t->dims[i], &t->bytes))
            return err_set(e, ERR_FORMAT, NULL, "its shape takes more than 2^64 bytes");
    return 0;
}

// Reads one row of the table. The place is kept as an offset in `data` until the table's end is
// known (place_tensor).
static int read_tensor(gguf *g, cursor *c, gguf_tensor *t, uint64_t *place, err *e) {
    size_t at = gguf_position(g, c);
    if (gguf_read_string(g, c, 1, GGUF_MAX_NAME_BYTES, "the tensor's name", &t->name, e))
        return -1;
    if (!gguf_is_printable(t->name))
        return err_set(e, ERR_FORMAT, NULL,
                       "the tensor's name at offset %zu is not printable ASCII", at);
    if (read_dims(g, c, t, e) || read_type(g, c, t, e))
        return err_wrap(e, "tensor '%.*s'", gguf_shown(t->name), t->name.p);
    *place = cursor_u64(c);
    if (c->failed) {
        gguf_ended(g, c, "the offset of its data", e);
        return err_wrap(e, "tensor '%.*s'", gguf_shown(t->name), t->name.p);
    }
    return 0;
}

static int place_tensor(const gguf *g, gguf_tensor *t, uint64_t place, err *e) {
    uint64_t room = g->n - g->data_start;
    if (place % g->alignment != 0)
        return err_set(e, ERR_FORMAT, NULL,
                       "tensor '%.*s': its data offset %llu is not a multiple of %llu",
                       gguf_shown(t->name), t->name.p, (unsigned long long)place,
                       (unsigned long long)g->alignment);
    if (place > room || t->bytes > room - place)
        return err_set(
            e, ERR_FORMAT, NULL,
            "tensor '%.*s': %llu bytes of data at offset %llu, but the file has %llu bytes "
            "of data: is it cut off?",
            gguf_shown(t->name), t->name.p, (unsigned long long)t->bytes, (unsigned long long)place,
            (unsigned long long)room);
    t->data = g->base + g->data_start + place;
    return 0;
}

static int compare_names(const void *a, const void *b) {
    const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
    return gguf_string_compare(x->name, y->name);
}

static int compare_places(const void *a, const void *b) {
    const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
    return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

int gguf_order_tensors(gguf *g, err *e) {
    g->names = arena_alloc(&g->memory, g->n_tensors * sizeof *g->names + 1);
    for (size_t i = 0; i < g->n_tensors; i++)
        g->names[i] = &g->tensors[i];
    qsort(g->names, g->n_tensors, sizeof *g->names, compare_names);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare_names(&g->names[i - 1], &g->names[i]) == 0)
            return err_set(e, ERR_FORMAT, NULL, "tensor '%.*s' appears twice",
                           gguf_shown(g->names[i]->name), g->names[i]->name.p);
    return 0;
}

// `places` holds the tensors ordered by where their data begins.
static int check_overlap(const gguf *g, const gguf_tensor **places, err *e) {
    for (size_t i = 1; i < g->n_tensors; i++) {
        const gguf_tensor *a = places[i - 1], *b = places[i];
        const uint8_t *end = (const uint8_t *)a->data + a->bytes;
        if (end > (const uint8_t *)b->data)
            return err_set(e, ERR_FORMAT, NULL, "tensors '%.*s' and '%.*s' overlap at offset %zu",
                           gguf_shown(a->name), a->name.p, gguf_shown(b->name), b->name.p,
                           (size_t)((const uint8_t *)b->data - g->base));
    }
    return 0;
}

// The table has been read: find where data begins and put every tensor there.
static int place_all(gguf *g, const uint64_t *places, err *e) {
    g->data_start = (size_t)((g->head_bytes + g->alignment - 1) & ~(g->alignment - 1));
    if (g->n_tensors == 0) // vocabulary-only files are not padded
        return 0;
    if (g->data_start >= g->n)
        return err_set(e, ERR_FORMAT, NULL,
                       "the file ends at offset %zu, before its tensor data would begin (%zu)",
                       g->n, g->data_start);
    const gguf_tensor **order = arena_alloc(&g->memory, g->n_tensors * sizeof *order);
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (place_tensor(g, &g->tensors[i], places[i], e))
            return -1;
        order[i] = &g->tensors[i];
    }
    qsort(order, g->n_tensors, sizeof *order, compare_places);
    return gguf_order_tensors(g, e) || check_overlap(g, order, e) ? -1 : 0;
}

int gguf_parse_tensors(gguf *g, cursor *c, uint64_t n, err *e) {
    if (n > GGUF_MAX_TENSORS)
        return err_set(e, ERR_FORMAT, NULL, "the header claims %llu tensors; the limit is %u",
                       (unsigned long long)n, GGUF_MAX_TENSORS);
    if (n > cursor_left(c) / LEAST_TENSOR_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "the header claims %llu tensors, but only %zu bytes follow the metadata",
                       (unsigned long long)n, cursor_left(c));
    g->n_tensors = (size_t)n;
    g->tensors = arena_alloc(&g->memory, (size_t)n * sizeof *g->tensors + 1);
    uint64_t *places = arena_alloc(&g->memory, (size_t)n * sizeof *places + 1);
    for (size_t i = 0; i < g->n_tensors; i++)
        if (read_tensor(g, c, &g->tensors[i], &places[i], e))
            return err_wrap(e, "tensor %zu of %zu", i + 1, g->n_tensors);
    g->head_bytes = gguf_position(g, c);
    return place_all(g, places, e);
}

size_t gguf_n_tensors(const gguf *g) { return g->n_tensors; }
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i) { return &g->tensors[i]; }

const gguf_tensor *gguf_find(const gguf *g, const char *name) {
    gguf_string wanted = {name, strlen(name)};
    size_t low = 0, high = g->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = gguf_string_compare(g->names[middle]->name, wanted);
        if (order == 0)
            return g->names[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
