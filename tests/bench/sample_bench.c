// Microseconds that the sampler takes for one token, by vocabulary and parameters, for people.
// Usage: sample_bench [threads]. One thread is timed by the processor time it used, more by the
// wall clock; each figure is the least and the median of many draws. Asserts nothing.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "engine/sample.h"

enum { MOST_VOCAB = 152064, DRAWS = 400 };

static double now_us(clockid_t source) {
    struct timespec t;
    clock_gettime(source, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void fill(float *l, int n) { // about a real model's spread
    uint32_t x = 1;
    for (int i = 0; i < n; i++) {
        l[i] = -16;
        for (int k = 0; k < 4; k++) {
            x = x * 1664525 + 1013904223;
            l[i] += (float)(x >> 8) / (float)(1 << 24) * 8;
        }
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(ops *o, int threads, int n_vocab, const char *name, const sampling_params *p) {
    static float logits[MOST_VOCAB];
    static double us[DRAWS];
    clockid_t source = threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    sampler *s = sampler_open(o, n_vocab);
    err e = {0};
    int bad;
    fill(logits, n_vocab);
    for (int i = 0; i < DRAWS; i++) {
        engine_sampled out;
        sample_item it = {.logits = logits, .params = p, .position = i, .given = -1, .out = &out};
        double begun = now_us(source);
        if (sampler_run(s, &it, 1, &bad, &e))
            exit(1);
        us[i] = now_us(source) - begun;
    }
    qsort(us, DRAWS, sizeof *us, ascending);
    printf("%7d %-12s %8.1f %8.1f\n", n_vocab, name, us[0], us[DRAWS / 2]);
    sampler_close(s);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    static const int sizes[] = {49152, MOST_VOCAB};
    static const struct {
        const char *name;
        float temperature, top_p;
        int32_t top_k;
    } cases[] = {{"greedy", 0, 1, 0},
                 {"temperature", 1, 1, 0},
                 {"top_p 0.9", 1, 0.9f, 0},
                 {"top_k 40", 1, 1, 40}};
    ops *o = NULL;
    err e = {0};
    if (ops_open(NULL, threads, &o, &e)) {
        fprintf(stderr, "sample_bench: %s\n", e.message);
        return 1;
    }
    printf("%d threads: vocabulary, parameters, us per token at least and in the median\n",
           threads);
    for (int i = 0; i < 2; i++)
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            sampling_params p = {.temperature = cases[k].temperature,
                                 .top_p = cases[k].top_p,
                                 .top_k = cases[k].top_k,
                                 .repetition_penalty = 1,
                                 .seed = 1,
                                 .n_top_logprobs = -1};
            bench(o, threads, sizes[i], cases[k].name, &p);
        }
    o->close(o);
    return 0;
}
