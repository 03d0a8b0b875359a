// Safetensors: whatever the bytes, opening them and walking what is then offered end in an answer
// or an error with a message; tensors cover the data exactly.
#include "model/safetensors.h"
#include <stdlib.h>

static volatile unsigned sink; // keeps the reads

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors *f = NULL;
    err e = {0};
    if (safetensors_open_memory(data, size, &f, &e)) {
        if (!e.message[0] || e.code != ERR_FORMAT)
            abort();
        return 0;
    }
    uint64_t at = safetensors_head_bytes(f);
    for (size_t i = 0; i < safetensors_count(f); i++) {
        const safetensor *t = safetensors_at(f, i);
        const uint8_t *p = t->data;
        unsigned sum = 0;
        for (uint64_t k = 0; k < t->bytes; k++)
            sum += p[k];
        sink = sum;
        if (t->offset != at || p != data + at || safetensors_find(f, t->name) != t)
            abort();
        at += t->bytes;
    }
    if (at != size)
        abort();
    safetensors_close(f);
    return 0;
}
