// Shared by sample.c and sample_select.c only: the crew that walks over the vocabulary, and weights
// of tokens as integers.
#ifndef ENGINE_SAMPLE_INTERNAL_H
#define ENGINE_SAMPLE_INTERNAL_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "engine/sample.h"
#include "kernels/ops.h"

#define SAMPLE_BLOCK 1024 // ids that are walked and summed together
#define SAMPLE_BINS 2048  // of a radix pass over 11 of a key's 32 bits

// The most probable tokens of the distribution that survive: all with a greater key than `key`, and
// those with just this key up to id last_id.
typedef struct sample_cut {
    uint32_t key;
    int32_t last_id;
} sample_cut;

typedef struct sample_bins { // one thread's histogram
    uint64_t mass[SAMPLE_BINS];
    uint32_t count[SAMPLE_BINS];
} sample_bins;

typedef struct sample_scan { // one thread's findings about raw logits
    float max;
    int32_t max_id;
    bool finite;
    int n_top;
    token_logprob top[ENGINE_TOP]; // logprob holds the logit meanwhile
} sample_scan;

typedef struct sample_part { // one thread's memory
    sample_bins bins;
    sample_scan scan;
} sample_part;

// The threads that work on one item: all of the backend's (o set), or the calling one alone.
typedef struct sample_crew {
    ops *o;
    sample_part *parts; // [n_parts]
    int n_parts;
    uint64_t *block_mass; // [blocks of the vocabulary]
    int n_vocab;
} sample_crew;

typedef struct sample_dist { // logits after bias and penalties
    const float *logits;
    float max, temperature;
    sample_cut cut;
} sample_dist;

// Orders as the floats do; -0 and 0 are one.
static inline uint32_t sample_key(float v) {
    uint32_t u;
    v += 0.0f;
    memcpy(&u, &v, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static inline bool sample_alive(const sample_cut *c, uint32_t key, int32_t id) {
    return key > c->key || (key == c->key && id <= c->last_id);
}

// e^x for x <= 0 to about 1e-7, by the same additions and products on every machine (libm's
// differ). Below -87 it stays at e^-87, which weighs nothing. Cephes' polynomial.
static inline float sample_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = (float)(int32_t)(x * 1.44269504f - 0.5f); // truncation rounds, as x <= 0
    float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// Of a logit, in units of 2^-40 of the greatest one's.
static inline uint64_t sample_weight(float logit, float max, float temperature) {
    return (uint64_t)(int64_t)(sample_exp((logit - max) / temperature) * 1099511627776.0f);
}

// fn(ctx, part, n_parts) on every thread of the crew; waits.
void sample_run(const sample_crew *c, void (*fn)(void *ctx, int part, int n_parts), void *ctx);
// The ids [*from, *to) of a part: whole blocks.
void sample_range(int n_vocab, int part, int n_parts, int *from, int *to);
// Sum of the weights that survive d->cut; leaves each block's in c->block_mass.
uint64_t sample_mass(const sample_crew *c, const sample_dist *d);
// Applies steps 5 to 7 of sample.h to d->cut.
void sample_truncate(const sample_crew *c, sample_dist *d, const sampling_params *p);

#endif
