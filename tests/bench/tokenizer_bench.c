// How fast the tokenizer reads files, and what one huge word costs: make bench-tokenizer.
#include "base/file.h"
#include "model/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS 5
#define WORD_BYTES (8u << 20)

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

// A line of /proc/self/status, in kB: VmRSS or VmHWM.
static long status_kb(const char *key) {
    buf text = {0};
    err e = {0};
    need(file_read("/proc/self/status", 1 << 20, &text, &e), &e);
    const char *at = strstr(text.data, key);
    long kb = at ? strtol(at + strlen(key) + 1, NULL, 10) : 0;
    buf_release(&text);
    return kb;
}

// Letters without a space: the longest way through BPE. The peak is counted over the text itself.
static void bench_word(const tokenizer *t) {
    char *word = malloc(WORD_BYTES);
    token_list l = {0};
    err e = {0};
    uint64_t state = 1;
    if (!word)
        exit(1);
    for (size_t i = 0; i < WORD_BYTES; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        word[i] = "etaoinshrdluetaoinetaoeta"[(state >> 40) % 25];
    }
    FILE *f = fopen("/proc/self/clear_refs", "w"); // the peak begins here
    if (!f || fputs("5", f) < 0 || fclose(f))
        exit(1);
    long before = status_kb("VmRSS");
    double from = seconds();
    need(tokenizer_encode(t, word, WORD_BYTES, false, &l, &e), &e);
    double spent = seconds() - from;
    long used = status_kb("VmHWM") - before;
    printf("one word of %.1f MB in %.2f s, %.1f bytes of memory a byte\n", WORD_BYTES / 1e6, spent,
           1024.0 * (double)used / WORD_BYTES);
    token_list_release(&l);
    free(word);
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
    bench_word(t);
    tokenizer_close(t);
    gguf_close(g);
    return 0;
}
