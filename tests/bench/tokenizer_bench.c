// How fast the tokenizer reads files: make bench-tokenizer.
#include "base/file.h"
#include "model/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 5

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void need(int rc, const err *e) {
    if (!rc)
        return;
    fprintf(stderr, "tokenizer_bench: %s\n", e->message);
    exit(1);
}

int main(int argc, char **argv) {
    gguf *g = NULL;
    tokenizer *t = NULL;
    err e = {0};
    size_t bytes = 0, tokens = 0;
    double spent = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: tokenizer_bench FILE.gguf TEXT...\n");
        return 2;
    }
    need(gguf_open(argv[1], &g, &e), &e);
    double from = seconds();
    need(tokenizer_open(g, &t, &e), &e);
    double opened = seconds() - from;
    for (int i = 2; i < argc; i++) {
        buf text = {0};
        need(file_read(argv[i], 64u << 20, &text, &e), &e);
        for (int round = 0; round < ROUNDS; round++) {
            token_list l = {0};
            from = seconds();
            need(tokenizer_encode(t, text.data, text.len, false, &l, &e), &e);
            spent += seconds() - from;
            bytes += text.len;
            tokens += l.n;
            token_list_release(&l);
        }
        buf_release(&text);
    }
    printf("%s: opened in %.0f ms; %.1f MB in %.2f s: %.1f MB/s, %.2f bytes a token\n", argv[1],
           1e3 * opened, (double)bytes / 1e6, spent, (double)bytes / 1e6 / spent,
           (double)bytes / (double)tokens);
    tokenizer_close(t);
    gguf_close(g);
    return 0;
}
