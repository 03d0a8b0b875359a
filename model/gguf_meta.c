// The metadata of a GGUF file: reads the key-value pairs, orders them by key (so that a look-up is
// a binary search and no file can be built to make it slow), and answers the typed questions. The
// strings of an array are indexed when it is read, because they have to be walked then anyway.
// Owns nothing beyond the file's arena. Does not know what any key but general.alignment means.
#include "model/gguf_internal.h"
#include <stdlib.h>
#include <string.h>

#define LEAST_PAIR_BYTES 14u // key length, one byte of key, type, one byte of value

static const struct {
    const char *name;
    size_t bytes; // of a scalar; 0: not one
} types[] = {
    [GGUF_U8] = {"u8", 1},   [GGUF_I8] = {"i8", 1},       [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2}, [GGUF_U32] = {"u32", 4},     [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4}, [GGUF_BOOL] = {"bool", 1},   [GGUF_STRING] = {"string", 0},
    [GGUF_U64] = {"u64", 8}, [GGUF_ARRAY] = {"array", 0}, [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};
#define N_TYPES (sizeof types / sizeof types[0])

const char *gguf_type_name(gguf_type kind) {
    return (size_t)kind < N_TYPES ? types[kind].name : "?";
}

static int check_bools(const gguf *g, const uint8_t *p, uint64_t n, err *e) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i] > 1)
            return err_set(e, ERR_FORMAT, NULL, "bool at offset %zu is %u, neither 0 nor 1",
                           (size_t)(p + i - g->base), p[i]);
    return 0;
}

static int read_scalars(gguf *g, cursor *c, gguf_type type, uint64_t n, gguf_entry *v, err *e) {
    uint64_t bytes = n * types[type].bytes; // n <= GGUF_MAX_ARRAY, so this does not overflow
    v->value = cursor_bytes(c, (size_t)bytes);
    if (c->failed)
        return gguf_ended(g, c, "the value", e);
    return type == GGUF_BOOL ? check_bools(g, v->value, n, e) : 0;
}

static int read_strings(gguf *g, cursor *c, gguf_entry *v, err *e) {
    v->value = c->p;
    uint32_t *starts = arena_alloc(&g->memory, (size_t)v->n * sizeof *starts + 1);
    for (uint64_t i = 0; i < v->n; i++) {
        size_t start = (size_t)(c->p - v->value);
        gguf_string s;
        if (start > GGUF_MAX_HEAD_BYTES)
            return err_set(e, ERR_FORMAT, NULL, "the array is larger than %u bytes",
                           GGUF_MAX_HEAD_BYTES);
        starts[i] = (uint32_t)start;
        if (gguf_read_string(g, c, 0, GGUF_MAX_STRING_BYTES, "the string", &s, e))
            return err_wrap(e, "element %llu", (unsigned long long)i);
    }
    v->strings = starts;
    return 0;
}

static int read_array(gguf *g, cursor *c, gguf_entry *v, err *e) {
    size_t at = gguf_position(g, c);
    uint32_t element = cursor_u32(c);
    v->n = cursor_u64(c);
    if (c->failed)
        return gguf_ended(g, c, "the array's head", e);
    if (element == GGUF_ARRAY)
        return err_set(e, ERR_FORMAT, NULL, "array of arrays at offset %zu is not supported", at);
    if (element >= N_TYPES)
        return err_set(e, ERR_FORMAT, NULL, "unknown element type %u at offset %zu", element, at);
    v->element = (gguf_type)element;
    size_t least = element == GGUF_STRING ? 8 : types[element].bytes;
    if (v->n > GGUF_MAX_ARRAY)
        return err_set(e, ERR_FORMAT, NULL,
                       "array at offset %zu claims %llu elements; the limit is %u", at,
                       (unsigned long long)v->n, GGUF_MAX_ARRAY);
    if (v->n > cursor_left(c) / least)
        return err_set(
            e, ERR_FORMAT, NULL,
            "array at offset %zu claims %llu elements, but only %zu bytes are left in the file", at,
            (unsigned long long)v->n, cursor_left(c));
    if (element == GGUF_STRING)
        return read_strings(g, c, v, e);
    return read_scalars(g, c, v->element, v->n, v, e);
}

static int read_value(gguf *g, cursor *c, gguf_entry *v, err *e) {
    size_t at = gguf_position(g, c);
    uint32_t type = cursor_u32(c);
    if (c->failed)
        return gguf_ended(g, c, "the value's type", e);
    if (type >= N_TYPES)
        return err_set(e, ERR_FORMAT, NULL, "unknown value type %u at offset %zu", type, at);
    v->type = (gguf_type)type;
    if (type == GGUF_ARRAY)
        return read_array(g, c, v, e);
    if (type != GGUF_STRING)
        return read_scalars(g, c, v->type, 1, v, e);
    gguf_string s;
    if (gguf_read_string(g, c, 0, GGUF_MAX_STRING_BYTES, "the string", &s, e))
        return -1;
    v->value = (const uint8_t *)s.p;
    v->bytes = s.n;
    return 0;
}

static int read_entry(gguf *g, cursor *c, gguf_entry *v, err *e) {
    v->offset = gguf_position(g, c);
    if (gguf_read_string(g, c, 1, GGUF_MAX_KEY_BYTES, "the key", &v->key, e))
        return -1;
    if (!gguf_is_printable(v->key))
        return err_set(e, ERR_FORMAT, NULL, "the key at offset %zu is not printable ASCII",
                       v->offset);
    if (read_value(g, c, v, e))
        return err_wrap(e, "key '%.*s'", gguf_shown(v->key), v->key.p);
    if (gguf_position(g, c) > GGUF_MAX_HEAD_BYTES)
        return err_set(e, ERR_FORMAT, NULL, "the metadata is larger than %u bytes (key '%.*s')",
                       GGUF_MAX_HEAD_BYTES, gguf_shown(v->key), v->key.p);
    return 0;
}

static int compare_entries(const void *a, const void *b) {
    const gguf_entry *x = a, *y = b;
    int order = gguf_string_compare(x->key, y->key);
    return order ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

static int read_alignment(gguf *g, err *e) {
    gguf_type kind;
    g->alignment = GGUF_DEFAULT_ALIGNMENT;
    if (!gguf_has(g, "general.alignment", &kind))
        return 0;
    if (kind != GGUF_U32)
        return err_set(e, ERR_FORMAT, NULL, "key 'general.alignment' has type %s; it must be u32",
                       gguf_type_name(kind));
    gguf_get_u64(g, "general.alignment", &g->alignment);
    uint64_t a = g->alignment;
    if (a < 8 || a > GGUF_MAX_ALIGNMENT || (a & (a - 1)) != 0)
        return err_set(e, ERR_FORMAT, NULL,
                       "key 'general.alignment' is %llu; it must be a power of two from 8 to %u",
                       (unsigned long long)a, GGUF_MAX_ALIGNMENT);
    return 0;
}

int gguf_parse_metadata(gguf *g, cursor *c, uint64_t n, err *e) {
    if (n > GGUF_MAX_KEYS)
        return err_set(e, ERR_FORMAT, NULL, "the header claims %llu keys; the limit is %u",
                       (unsigned long long)n, GGUF_MAX_KEYS);
    if (n > cursor_left(c) / LEAST_PAIR_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "the header claims %llu keys, but the file has only %zu bytes after it",
                       (unsigned long long)n, cursor_left(c));
    g->n_entries = (size_t)n;
    g->entries = arena_alloc(&g->memory, (size_t)n * sizeof *g->entries + 1);
    for (size_t i = 0; i < g->n_entries; i++)
        if (read_entry(g, c, &g->entries[i], e))
            return err_wrap(e, "metadata pair %zu of %zu", i + 1, g->n_entries);
    qsort(g->entries, g->n_entries, sizeof *g->entries, compare_entries);
    for (size_t i = 1; i < g->n_entries; i++) {
        const gguf_entry *a = &g->entries[i - 1], *b = &g->entries[i];
        if (gguf_string_compare(a->key, b->key) == 0)
            return err_set(e, ERR_FORMAT, NULL, "key '%.*s' appears twice, at offsets %zu and %zu",
                           gguf_shown(a->key), a->key.p, a->offset, b->offset);
    }
    return read_alignment(g, e);
}

static const gguf_entry *find(const gguf *g, const char *key) {
    gguf_string wanted = {key, strlen(key)};
    size_t low = 0, high = g->n_entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = gguf_string_compare(g->entries[middle].key, wanted);
        if (order == 0)
            return &g->entries[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static bool decode_u64(gguf_type type, const uint8_t *p, uint64_t *out) {
    cursor c = cursor_over(p, types[type].bytes);
    int64_t v;
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        *out = cursor_u8(&c);
        return true;
    case GGUF_U16:
        *out = cursor_u16(&c);
        return true;
    case GGUF_U32:
        *out = cursor_u32(&c);
        return true;
    case GGUF_U64:
        *out = cursor_u64(&c);
        return true;
    case GGUF_I8:
        v = (int8_t)cursor_u8(&c);
        break;
    case GGUF_I16:
        v = (int16_t)cursor_u16(&c);
        break;
    case GGUF_I32:
        v = (int32_t)cursor_u32(&c);
        break;
    case GGUF_I64:
        v = (int64_t)cursor_u64(&c);
        break;
    default:
        return false;
    }
    *out = (uint64_t)v;
    return v >= 0;
}

static bool decode_f64(gguf_type type, const uint8_t *p, double *out) {
    cursor c = cursor_over(p, types[type].bytes);
    switch (type) {
    case GGUF_F32:
        *out = (double)cursor_f32(&c);
        return true;
    case GGUF_F64:
        *out = cursor_f64(&c);
        return true;
    case GGUF_I8:
        *out = (int8_t)cursor_u8(&c);
        return true;
    case GGUF_I16:
        *out = (int16_t)cursor_u16(&c);
        return true;
    case GGUF_I32:
        *out = (int32_t)cursor_u32(&c);
        return true;
    case GGUF_I64:
        *out = (double)(int64_t)cursor_u64(&c);
        return true;
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64: {
        uint64_t v = 0;
        decode_u64(type, p, &v);
        *out = (double)v;
        return true;
    }
    default:
        return false;
    }
}

bool gguf_has(const gguf *g, const char *key, gguf_type *kind) {
    const gguf_entry *v = find(g, key);
    if (v && kind)
        *kind = v->type;
    return v != NULL;
}

bool gguf_get_u64(const gguf *g, const char *key, uint64_t *out) {
    const gguf_entry *v = find(g, key);
    return v && decode_u64(v->type, v->value, out);
}

bool gguf_get_f64(const gguf *g, const char *key, double *out) {
    const gguf_entry *v = find(g, key);
    return v && decode_f64(v->type, v->value, out);
}

bool gguf_get_bool(const gguf *g, const char *key, bool *out) {
    const gguf_entry *v = find(g, key);
    if (!v || v->type != GGUF_BOOL)
        return false;
    *out = *v->value != 0;
    return true;
}

bool gguf_get_string(const gguf *g, const char *key, gguf_string *out) {
    const gguf_entry *v = find(g, key);
    if (!v || v->type != GGUF_STRING)
        return false;
    *out = (gguf_string){(const char *)v->value, v->bytes};
    return true;
}

static const gguf_entry *find_array(const gguf *g, const char *key) {
    const gguf_entry *v = find(g, key);
    return v && v->type == GGUF_ARRAY ? v : NULL;
}

bool gguf_array(const gguf *g, const char *key, gguf_type *element, uint64_t *n) {
    const gguf_entry *v = find_array(g, key);
    if (!v)
        return false;
    if (element)
        *element = v->element;
    *n = v->n;
    return true;
}

bool gguf_array_string(const gguf *g, const char *key, uint64_t i, gguf_string *out) {
    const gguf_entry *v = find_array(g, key);
    if (!v || v->element != GGUF_STRING || i >= v->n)
        return false;
    const uint8_t *p = v->value + v->strings[i];
    cursor c = cursor_over(p, 8);
    *out = (gguf_string){(const char *)p + 8, (size_t)cursor_u64(&c)};
    return true;
}

bool gguf_array_u64(const gguf *g, const char *key, uint64_t i, uint64_t *out) {
    const gguf_entry *v = find_array(g, key);
    return v && i < v->n && decode_u64(v->element, v->value + i * types[v->element].bytes, out);
}

bool gguf_array_f64(const gguf *g, const char *key, uint64_t i, double *out) {
    const gguf_entry *v = find_array(g, key);
    return v && i < v->n && decode_f64(v->element, v->value + i * types[v->element].bytes, out);
}
