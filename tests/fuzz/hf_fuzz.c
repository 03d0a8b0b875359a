// Hugging Face directories: whatever config.json, tokenizer.json and the others hold, opening ends
// in a model or an error with a message.
//
// Input: files, each a line with its name (a letter, see below) and its text up to a line "%%".
// What is not given is that of a tiny model, a packed one (GPTQ) when the first byte is 'q'.
#include "model/model.h"
#include "base/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLAIN "tests/fixtures/hf/qwen2-f32-tied"
#define PACKED "tests/fixtures/hf/gptq-v2-qwen2-act-order"

static const struct {
    char letter;
    const char *name;
} files[] = {{'c', "config.json"},
             {'t', "tokenizer.json"},
             {'g', "generation_config.json"},
             {'s', "tokenizer_config.json"},
             {'j', "chat_template.jinja"},
             {'w', "model.safetensors"},
             {'i', "model.safetensors.index.json"}};
enum { N_FILES = sizeof files / sizeof *files };

static char directory[] = "/tmp/tiergate-fuzz-hf-XXXXXX";
static char plain[4096], packed[4096];

static void path_of(int i, const char *base, char *out, size_t n) {
    snprintf(out, n, "%.4000s/%s", base, files[i].name);
}

static void clear(void) {
    char path[4200];
    for (int i = 0; i < N_FILES; i++) {
        path_of(i, directory, path, sizeof path);
        unlink(path);
    }
}

static void leave(void) {
    clear();
    rmdir(directory);
}

static void put(int i, const char *p, size_t n) {
    char path[4200];
    path_of(i, directory, path, sizeof path);
    FILE *f = fopen(path, "w");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f))
        abort();
}

static void fill(const char *fixture) {
    char from[4200], to[4200];
    for (int i = 0; i < N_FILES; i++) {
        path_of(i, fixture, from, sizeof from);
        path_of(i, directory, to, sizeof to);
        if (file_exists(from) && !file_exists(to) && symlink(from, to))
            abort();
    }
}

static void load_packed(const gguf *g) {
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->data)
            continue;
        void *made = malloc(t->bytes);
        if (!made)
            abort();
        gguf_load(g, t, made);
        free(made);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char end_mark[] = "\n%%\n";
    const char *p = (const char *)data, *end = p + size;
    bool is_packed = size > 0 && data[0] == 'q';
    if (!plain[0] && (!realpath(PLAIN, plain) || !realpath(PACKED, packed) || !mkdtemp(directory) ||
                      atexit(leave)))
        abort();
    while (end - p > 2) {
        char letter = *p;
        p += 2; // the letter and its line's end
        const char *mark = memmem(p, (size_t)(end - p), end_mark, sizeof end_mark - 1);
        size_t n = (size_t)((mark ? mark : end) - p);
        for (int i = 0; i < N_FILES; i++)
            if (files[i].letter == letter)
                put(i, p, n);
        p = mark ? mark + sizeof end_mark - 1 : end;
    }
    fill(is_packed ? packed : plain);
    model *m = NULL;
    err e = {0};
    if (model_open(directory, NULL, &m, &e)) {
        if (!e.message[0])
            abort();
    } else {
        load_packed(model_gguf(m));
    }
    model_close(m);
    clear();
    return 0;
}
