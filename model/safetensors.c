// Opens a safetensors file: maps it, reads its header from a private copy, and checks the table of
// tensors. Owns mapping, descriptor and names. Any thread after open. Does not know models
// (model/hf*.c) and reads no tensor data of its own accord.
#include "model/safetensors.h"
#include "base/arena.h"
#include "model/json_file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8u
#define MAX_HEADER_BYTES (32u << 20) // a table of 65,536 tensors takes a third of it
#define MAX_TENSORS 65536u
#define MAX_NAME_BYTES 256u
#define MAX_DIM INT32_MAX

struct safetensors {
    const uint8_t *base;
    size_t n, head_bytes;
    int fd; // -1: borrowed memory
    int64_t mtime_s, mtime_ns;
    arena memory;         // tensors and their names
    safetensor *tensors;  // by offset
    safetensor **by_name; // ordered by name
    size_t n_tensors;
};

static const struct {
    const char *name;
    unsigned bytes;
} dtypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},   {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2},
              {"U16", 2},     {"F16", 2}, {"BF16", 2}, {"I32", 4},     {"U32", 4},     {"F32", 4},
              {"F8_E8M0", 1}, {"F64", 8}, {"I64", 8},  {"U64", 8}};

// ---- one row of the table

static int refuse(const safetensor *t, err *e, const char *what) {
    return err_set(e, ERR_FORMAT, NULL, "tensor '%.80s': %s", t->name, what);
}

static int read_dtype(safetensor *t, const json_t *v, unsigned *bytes, err *e) {
    const char *name = json_string_value(v);
    if (!name)
        return refuse(t, e, "dtype is missing or no text");
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(dtypes[i].name, name)) {
            t->dtype = dtypes[i].name;
            *bytes = dtypes[i].bytes;
            return 0;
        }
    return refuse(t, e, "dtype is none that the format has");
}

static int read_shape(safetensor *t, const json_t *v, err *e) {
    if (!json_is_array(v))
        return refuse(t, e, "shape is missing or no array");
    if (json_array_size(v) > 4)
        return refuse(t, e, "shape has more than 4 dimensions");
    t->n_dims = (int)json_array_size(v);
    for (int i = 0; i < 4; i++) {
        const json_t *d = json_array_get(v, (size_t)i);
        t->dims[i] = 1;
        if (i >= t->n_dims)
            continue;
        if (!json_is_integer(d) || json_integer_value(d) < 0 || json_integer_value(d) > MAX_DIM)
            return refuse(t, e, "a dimension is no whole number from 0 to 2147483647");
        t->dims[i] = (uint64_t)json_integer_value(d);
    }
    return 0;
}

static int read_place(safetensor *t, const json_t *v, uint64_t room, err *e) {
    const json_t *begin = json_array_get(v, 0), *end = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return refuse(t, e, "data_offsets is missing or not two whole numbers");
    json_int_t from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from || (uint64_t)to > room)
        return err_set(e, ERR_FORMAT, NULL,
                       "tensor '%.80s': data_offsets are %lld and %lld, but there are %llu bytes "
                       "of data: is the file cut off?",
                       t->name, (long long)from, (long long)to, (unsigned long long)room);
    t->offset = (uint64_t)from;
    t->bytes = (uint64_t)(to - from);
    return 0;
}

static int check_size(const safetensor *t, uint64_t value_bytes, err *e) {
    uint64_t bytes = value_bytes;
    for (int i = 0; i < 4; i++)
        if (__builtin_mul_overflow(bytes, t->dims[i], &bytes))
            return refuse(t, e, "its shape takes more than 2^64 bytes");
    if (bytes != t->bytes)
        return err_set(e, ERR_FORMAT, NULL,
                       "tensor '%.80s': %llu bytes of data where its shape and dtype take %llu",
                       t->name, (unsigned long long)t->bytes, (unsigned long long)bytes);
    return 0;
}

static bool is_printable(const char *s) {
    for (; *s; s++)
        if (*s <= ' ' || *s > '~')
            return false;
    return true;
}

static int read_row(safetensors *f, const char *name, const json_t *row, err *e) {
    unsigned bytes = 0;
    safetensor *t = &f->tensors[f->n_tensors];
    if (!*name || strlen(name) > MAX_NAME_BYTES || !is_printable(name))
        return err_set(e, ERR_FORMAT, NULL,
                       "tensor %zu has no name of 1 to %u printable ASCII characters", f->n_tensors,
                       MAX_NAME_BYTES);
    t->name = arena_strdup(&f->memory, name);
    if (!json_is_object(row) || json_object_size(row) != 3)
        return refuse(t, e, "no object of dtype, shape and data_offsets");
    if (read_dtype(t, json_object_get(row, "dtype"), &bytes, e) ||
        read_shape(t, json_object_get(row, "shape"), e) ||
        read_place(t, json_object_get(row, "data_offsets"), f->n - f->head_bytes, e) ||
        check_size(t, bytes, e))
        return -1;
    t->offset += f->head_bytes;
    t->data = f->base + t->offset;
    f->n_tensors++;
    return 0;
}

// ---- the table

static int compare_places(const void *a, const void *b) {
    const safetensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(safetensor *const *)a)->name, (*(safetensor *const *)b)->name);
}

static int check_cover(const safetensors *f, err *e) {
    uint64_t at = f->head_bytes;
    for (size_t i = 0; i < f->n_tensors; i++) {
        const safetensor *t = &f->tensors[i];
        if (t->offset != at)
            return err_set(e, ERR_FORMAT, NULL,
                           "tensor '%.80s' begins at offset %llu, %s the end of what precedes it "
                           "(%llu)",
                           t->name, (unsigned long long)t->offset,
                           t->offset < at ? "before" : "behind", (unsigned long long)at);
        at += t->bytes;
    }
    if (at != f->n)
        return err_set(e, ERR_FORMAT, NULL,
                       "%llu bytes stand behind the last tensor: they belong to none",
                       (unsigned long long)(f->n - at));
    return 0;
}

static int read_metadata(const json_t *v, err *e) {
    const char *key;
    json_t *text;
    if (!json_is_object(v))
        return err_set(e, ERR_FORMAT, NULL, "the header's __metadata__ is no object");
    json_object_foreach(
        (json_t *)(uintptr_t)v, key,
        text) if (!json_is_string(text)) return err_set(e, ERR_FORMAT, NULL,
                                                        "the header's __metadata__ holds something "
                                                        "that is no text");
    return 0;
}

static int read_table(safetensors *f, json_t *table, err *e) {
    const char *name;
    json_t *row;
    if (json_object_size(table) > MAX_TENSORS)
        return err_set(e, ERR_FORMAT, NULL, "the header has %zu tensors; the limit is %u",
                       json_object_size(table), MAX_TENSORS);
    f->tensors = arena_alloc(&f->memory, json_object_size(table) * sizeof *f->tensors + 1);
    json_object_foreach(table, name, row) {
        if (strcmp(name, "__metadata__") ? read_row(f, name, row, e) : read_metadata(row, e))
            return -1;
    }
    f->by_name = arena_alloc(&f->memory, f->n_tensors * sizeof *f->by_name + 1);
    qsort(f->tensors, f->n_tensors, sizeof *f->tensors, compare_places);
    for (size_t i = 0; i < f->n_tensors; i++)
        f->by_name[i] = &f->tensors[i];
    qsort(f->by_name, f->n_tensors, sizeof *f->by_name, compare_names);
    return check_cover(f, e);
}

// The length is checked against the file before anything is read by it.
static int read_header(safetensors *f, err *e) {
    uint8_t length[LENGTH_BYTES];
    uint64_t n = 0;
    if (f->n < LENGTH_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "not a safetensors file: it has %zu bytes, and the header's length alone "
                       "takes %u",
                       f->n, LENGTH_BYTES);
    if (safetensors_read(f, 0, length, sizeof length, e))
        return -1;
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        n |= (uint64_t)length[i] << 8 * i;
    if (n < 2 || n > MAX_HEADER_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "not a safetensors file: it claims a header of %llu bytes; 2 to %u are "
                       "possible",
                       (unsigned long long)n, MAX_HEADER_BYTES);
    if (n > f->n - LENGTH_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "it claims a header of %llu bytes, but only %zu follow its length: is the "
                       "file cut off?",
                       (unsigned long long)n, f->n - LENGTH_BYTES);
    f->head_bytes = LENGTH_BYTES + (size_t)n;
    char *text = malloc((size_t)n);
    json_t *table = NULL;
    if (!text)
        fatal("out of memory");
    int rc = safetensors_read(f, LENGTH_BYTES, text, (size_t)n, e);
    if (!rc && text[0] != '{')
        rc = err_set(e, ERR_FORMAT, NULL, "the header does not begin with '{'");
    if (!rc)
        rc = json_file_parse("the header", text, (size_t)n, JSON_NUMBERS_EXACT, &table, e);
    if (!rc)
        rc = read_table(f, table, e);
    json_decref(table);
    free(text);
    return rc;
}

// ---- the file

static int map_file(safetensors *f, const char *path, err *e) {
    struct stat s;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us
    if (f->fd < 0 || fstat(f->fd, &s))
        return err_set(e, ERR_IO, NULL, "cannot open: %s", strerror(errno));
    if (!S_ISREG(s.st_mode))
        return err_set(e, ERR_IO, NULL, "not a regular file");
    if (s.st_size == 0)
        return err_set(e, ERR_FORMAT, NULL, "not a safetensors file: it is empty");
    f->mtime_s = s.st_mtim.tv_sec;
    f->mtime_ns = s.st_mtim.tv_nsec;
    void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, ERR_IO, NULL, "cannot map: %s", strerror(errno));
    f->base = p;
    f->n = (size_t)s.st_size;
    return 0;
}

int safetensors_read(const safetensors *f, uint64_t at, void *to, size_t n, err *e) {
    if (f->fd < 0)
        memcpy(to, f->base + at, n);
    for (size_t done = 0; f->fd >= 0 && done < n;) {
        ssize_t got = pread(f->fd, (uint8_t *)to + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set(e, ERR_IO, NULL, "cannot read: %s",
                           got ? strerror(errno) : "the file was cut short");
        done += (size_t)got;
    }
    return 0;
}

int safetensors_unchanged(const safetensors *f, err *e) {
    struct stat s;
    if (f->fd < 0)
        return 0;
    if (fstat(f->fd, &s))
        return err_set(e, ERR_IO, NULL, "cannot examine the open file: %s", strerror(errno));
    if ((uint64_t)s.st_size != f->n || s.st_mtim.tv_sec != f->mtime_s ||
        s.st_mtim.tv_nsec != f->mtime_ns)
        return err_set(e, ERR_IO, NULL, "the file was written to while it was open");
    return 0;
}

static safetensors *file_new(void) {
    safetensors *f = calloc(1, sizeof *f);
    if (!f)
        fatal("out of memory");
    f->fd = -1;
    arena_init(&f->memory);
    return f;
}

int safetensors_open(const char *path, safetensors **out, err *e) {
    safetensors *f = file_new();
    if (map_file(f, path, e) || read_header(f, e) || safetensors_unchanged(f, e)) {
        safetensors_close(f);
        return err_wrap(e, "%.200s", path);
    }
    *out = f;
    return 0;
}

int safetensors_open_memory(const void *p, size_t n, safetensors **out, err *e) {
    safetensors *f = file_new();
    f->base = p;
    f->n = n;
    if (read_header(f, e)) {
        safetensors_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

void safetensors_close(safetensors *f) {
    if (!f)
        return;
    if (f->fd >= 0) {
        if (f->base)
            munmap((void *)(uintptr_t)f->base, f->n);
        close(f->fd);
    }
    arena_release(&f->memory);
    free(f);
}

size_t safetensors_count(const safetensors *f) { return f->n_tensors; }
const safetensor *safetensors_at(const safetensors *f, size_t i) { return &f->tensors[i]; }
uint64_t safetensors_file_bytes(const safetensors *f) { return f->n; }
uint64_t safetensors_head_bytes(const safetensors *f) { return f->head_bytes; }

const safetensor *safetensors_find(const safetensors *f, const char *name) {
    size_t low = 0, high = f->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(f->by_name[middle]->name, name);
        if (order == 0)
            return f->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

int safetensor_float_type(const safetensor *t, uint32_t *type, err *e) {
    static const struct {
        const char *dtype;
        uint32_t type;
    } types[] = {{"F32", 0}, {"F16", 1}, {"BF16", 30}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(t->dtype, types[i].dtype)) {
            *type = types[i].type;
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED, NULL,
                   "tensor '%.80s' is %s; F32, F16 and BF16 are supported", t->name, t->dtype);
}
