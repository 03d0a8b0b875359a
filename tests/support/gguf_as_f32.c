// Copies a GGUF file tensor by tensor, dequantised, so that one tensor at a time is in memory.
// Owned by one test; ends the process where a test cannot go on.
#include "tests/support/gguf_as_f32.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "kernels/ops.h"

enum { ALIGNMENT = 32 };

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
    while (head.len % ALIGNMENT)
        buf_put_u8(&head, 0);
    write_all(fd, head.data, head.len);
    buf_release(&head);
    for (size_t i = 0; i < gguf_n_tensors(g); i++)
        write_tensor(gguf_tensor_at(g, i), fd);
}
