// tiny_models DIR: writes every model of tiny_model.h there as NAME.gguf, for the oracle.
#include <stdio.h>
#include "base/file.h"
#include "tests/support/tiny_model.h"

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: tiny_models DIR\n");
        return 2;
    }
    err e = {0};
    for (int i = 0; i < n_tiny_models; i++) {
        buf bytes = {0};
        char path[4096];
        snprintf(path, sizeof path, "%s/%s.gguf", argv[1], tiny_models[i].name);
        tiny_model_bytes(&tiny_models[i], &bytes);
        int rc = file_write_atomic(path, 0644, bytes.data, bytes.len, &e);
        buf_release(&bytes);
        if (rc) {
            fprintf(stderr, "%s\n", e.message);
            return 1;
        }
    }
    return 0;
}
