// Goldens of tests/fixtures/model and how an engine is held to them.
#ifndef TESTS_SUPPORT_GOLDEN_H
#define TESTS_SUPPORT_GOLDEN_H
#include <stdbool.h>
#include <stdint.h>
#include "engine/engine.h"

typedef struct golden { // one prompt
    char name[32];
    char sha256[65]; // of the model file, "" where it stands for all prompts
    int n, n_greedy;
    int32_t *ids;     // [n]
    float *logprobs;  // [n - 1] of ids[1..]
    int32_t *greedy;  // [n_greedy]
    int32_t *top_ids; // [n_greedy, 5], the most probable first
    float *top_logprobs;
} golden;

typedef struct golden_diff { // log-probabilities against the golden's
    int n;
    double sum, max;
} golden_diff;

// The prompts of a JSON file (an array "prompts", or an object of them); exits on a malformed file.
golden *goldens_read(const char *path, int *n);
void goldens_free(golden *g, int n);

sampling_params greedy_params(int n_top_logprobs);
// Feeds the first n prompt tokens in chunks, all with log-probabilities (into out[n - 1]). With
// greedy (then n is the whole prompt) decodes on and returns whether the tokens are the golden's,
// or at the first difference each token is within the other's top 5; else prints the difference and
// returns false.
bool golden_run(engine *g, const golden *k, int n, int chunk, engine_sampled *out, bool greedy);
void golden_compare(const golden *k, int n, const engine_sampled *scored, golden_diff *d);

#endif
