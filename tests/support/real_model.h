// The real model (SmolLM2-135M-Instruct, Q4_1) and a float copy of it against Hugging Face
// transformers on the same file: log-probability of every prompt token and greedy decoding. One
// test program per backend, so that they run side by side.
#ifndef TESTS_SUPPORT_REAL_MODEL_H
#define TESTS_SUPPORT_REAL_MODEL_H
#include <stdbool.h>

typedef struct real_plan {
    const char *backend;
    bool floats;      // the F32 copy
    bool directory;   // that copy as a Hugging Face directory
    int most_tokens;  // of a prompt; what is longer is cut and not decoded on
    double mean, max; // allowed difference of log-probabilities
} real_plan;

// Skips (and says why) without the file or the processor; fails through cmocka's assertions.
void real_model_check(const real_plan *p);

// With a KV cache of that type on the best backend: the log-probabilities of the prompts' first
// tokens in the float copy (integers round again what differs a little) against those with float32;
// mean, max: allowed differences.
void real_model_check_kv(const char *kv, double mean, double max);
// Greedy decoding of the short prompts against the goldens.
void real_model_check_kv_greedy(const char *kv);

// What the integer backends are held to; .backend is the caller's.
#define REAL_INTEGERS .most_tokens = 4096, .mean = 0.04, .max = 0.85
#define REAL_DIRECTORY .directory = true, REAL_FLOATS
#define REAL_FLOATS .floats = true, .most_tokens = 40, .mean = 0.002, .max = 0.03

#endif
