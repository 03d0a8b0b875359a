// Joins the tables of malformed files and writes one of them. Owns nothing.
#include "tests/support/gguf_malformed.h"

static const malformed *table(size_t i, size_t *n) {
    switch (i) {
    case 0:
        return malformed_format(n);
    case 1:
        return malformed_tensor_table(n);
    case 2:
        return malformed_shape(n);
    case 3:
        return malformed_weights(n);
    default:
        return malformed_tokenizer(n);
    }
}
#define N_TABLES 5u

size_t malformed_count(void) {
    size_t all = 0;
    for (size_t i = 0; i < N_TABLES; i++) {
        size_t n;
        table(i, &n);
        all += n;
    }
    return all;
}

const malformed *malformed_at(size_t i) {
    for (size_t t = 0; t < N_TABLES; t++) {
        size_t n;
        const malformed *rows = table(t, &n);
        if (i < n)
            return &rows[i];
        i -= n;
    }
    return NULL;
}

void malformed_write(const malformed *m, buf *out) {
    gguf_builder b;
    gguf_builder_init(&b);
    builder_small_model(&b, m->arch ? m->arch : "llama", 1);
    if (m->edit)
        m->edit(&b, m);
    gguf_builder_write(&b, out);
    out->len -= m->cut < out->len ? m->cut : out->len;
    gguf_builder_release(&b);
}
