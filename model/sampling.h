// What a request asks of sampling; plain data that travels from the API through the job to the
// engine.
#ifndef MODEL_SAMPLING_H
#define MODEL_SAMPLING_H
#include <stdbool.h>
#include <stdint.h>

#define SAMPLING_MAX_BIAS 300

typedef struct logit_bias {
    int32_t id;
    float bias; // -100..100
} logit_bias;

typedef struct sampling_params {
    uint64_t seed;            // always set: the client's, or drawn by the gateway
    float temperature;        // 0..2; 0 = greedy
    float top_p;              // (0..1]; 1 = off
    float min_p;              // [0..1); 0 = off
    int32_t top_k;            // 0 = off
    float presence_penalty;   // -2..2, over generated tokens (OpenAI)
    float frequency_penalty;  // -2..2, over generated tokens
    float repetition_penalty; // > 0; 1 = off, over prompt and generated tokens
    int32_t n_top_logprobs;   // -1: no log-probabilities; 0: the token's own; up to 20 alternatives
    int32_t n_bias;
    logit_bias bias[SAMPLING_MAX_BIAS];
} sampling_params;

#endif
