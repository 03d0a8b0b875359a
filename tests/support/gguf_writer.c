// The writer of gguf_writer.h: metadata, tensor table and data are collected in three buffers and
// joined at the end. Owned by one test; aborts where a test cannot go on.
#include "tests/support/gguf_writer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernels/ops.h"

enum { ALIGNMENT = 32 };

struct gguf_writer {
    buf keys, table, data;
    uint64_t n_keys, n_tensors;
};

gguf_writer *gguf_writer_new(void) {
    gguf_writer *w = calloc(1, sizeof *w);
    if (!w)
        abort();
    return w;
}

void gguf_writer_free(gguf_writer *w) {
    buf_release(&w->keys);
    buf_release(&w->table);
    buf_release(&w->data);
    free(w);
}

static void put_text(buf *b, const char *s) {
    buf_put_u64(b, strlen(s));
    buf_puts(b, s);
}

static void put_key(gguf_writer *w, const char *key, gguf_type type) {
    put_text(&w->keys, key);
    buf_put_u32(&w->keys, type);
    w->n_keys++;
}

void gguf_put_string(gguf_writer *w, const char *key, const char *value) {
    put_key(w, key, GGUF_STRING);
    put_text(&w->keys, value);
}

void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value) {
    put_key(w, key, GGUF_U32);
    buf_put_u32(&w->keys, value);
}

void gguf_put_f32(gguf_writer *w, const char *key, float value) {
    put_key(w, key, GGUF_F32);
    buf_put_f32(&w->keys, value);
}

static void put_array(gguf_writer *w, const char *key, gguf_type element, size_t n) {
    put_key(w, key, GGUF_ARRAY);
    buf_put_u32(&w->keys, element);
    buf_put_u64(&w->keys, n);
}

void gguf_put_strings(gguf_writer *w, const char *key, const char *const *values, size_t n) {
    put_array(w, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_text(&w->keys, values[i]);
}

void gguf_put_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t n) {
    put_array(w, key, GGUF_I32, n);
    for (size_t i = 0; i < n; i++)
        buf_put_u32(&w->keys, (uint32_t)values[i]);
}

static void pad(buf *b) {
    while (b->len % ALIGNMENT)
        buf_put_u8(b, 0);
}

void gguf_put_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_in, uint64_t n_out,
                     const void *data, size_t bytes) {
    put_text(&w->table, name);
    buf_put_u32(&w->table, n_out ? 2 : 1);
    buf_put_u64(&w->table, n_in);
    if (n_out)
        buf_put_u64(&w->table, n_out);
    buf_put_u32(&w->table, type);
    buf_put_u64(&w->table, w->data.len);
    buf_put(&w->data, data, bytes);
    pad(&w->data);
    w->n_tensors++;
}

void gguf_writer_bytes(gguf_writer *w, buf *out) {
    buf_puts(out, "GGUF");
    buf_put_u32(out, 3);
    buf_put_u64(out, w->n_tensors);
    buf_put_u64(out, w->n_keys);
    buf_put(out, w->keys.data, w->keys.len);
    buf_put(out, w->table.data, w->table.len);
    pad(out);
    buf_put(out, w->data.data, w->data.len);
}

static void write_all(int fd, const void *p, size_t n) {
    for (const char *at = p; n > 0;) {
        ssize_t done = write(fd, at, n);
        if (done <= 0) {
            perror("writing a GGUF file");
            exit(1);
        }
        at += done;
        n -= (size_t)done;
    }
}

static uint64_t count_values(const gguf_tensor *t) {
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

// The row of the tensor table follows its name: dimensions, then type and offset, which change.
static void patch_row(char *head, const char *base, const gguf_tensor *t, uint64_t offset) {
    char *at = head + (t->name.p + t->name.n - base) + 4 + 8 * t->n_dims;
    uint32_t f32 = WT_F32;
    memcpy(at, &f32, sizeof f32);
    memcpy(at + 4, &offset, sizeof offset);
}

static void write_tensor(const gguf_tensor *t, int fd) {
    uint64_t n = count_values(t);
    float *values = malloc(n * sizeof *values + ALIGNMENT);
    if (!values)
        abort();
    weight_dequantize((weight_type)t->type, t->data, values, (int64_t)n);
    write_all(fd, values, n * sizeof *values);
    static const char zeros[ALIGNMENT];
    write_all(fd, zeros, (ALIGNMENT - n * sizeof *values % ALIGNMENT) % ALIGNMENT);
    free(values);
}

void gguf_copy_as_f32(const gguf *g, int fd) {
    size_t n_head;
    uint64_t offset = 0;
    const char *base = gguf_head(g, &n_head);
    buf head = {0};
    buf_put(&head, base, n_head);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        patch_row(head.data, base, t, offset);
        offset += (count_values(t) * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    pad(&head);
    write_all(fd, head.data, head.len);
    buf_release(&head);
    for (size_t i = 0; i < gguf_n_tensors(g); i++)
        write_tensor(gguf_tensor_at(g, i), fd);
}
