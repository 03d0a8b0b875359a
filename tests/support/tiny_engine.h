// An engine on a tiny random model, and the few calls that every test of an engine makes. Failures
// end the test through cmocka's assertions; one thread.
#ifndef TESTS_SUPPORT_TINY_ENGINE_H
#define TESTS_SUPPORT_TINY_ENGINE_H
#include <stdint.h>
#include "engine/engine.h"
#include "tests/support/tiny_model.h"

typedef struct tiny_engine {
    model *m;
    engine *g;
} tiny_engine;

// Four sequences of TINY_CONTEXT tokens, steps of 256, 4 MiB of KV.
engine_config tiny_config(const char *backend, int n_threads);
model *tiny_open_made(const tiny_model *t);
model *tiny_open_model(const char *name); // of tiny_models
// Skips the test (and says so) where the processor lacks the backend.
void tiny_need(const char *backend);
void tiny_engine_open(tiny_engine *f, const char *name, engine_config c);
void tiny_engine_close(tiny_engine *f);

void tiny_ids(int32_t *ids, int n, uint32_t seed); // random, in the vocabulary
engine_seq *tiny_seq(engine *g, const sampling_params *p, const int32_t *ids, int n, int already,
                     const uint8_t *salt);
const engine_result *tiny_step(engine *g, const engine_row *rows, int n);
// Feeds the prompt in one step and decodes on until n tokens were sampled.
void tiny_generate(engine *g, engine_seq *s, const int32_t *prompt, int n_prompt, int32_t *out,
                   int n);
sampling_params tiny_lively(void); // temperature, truncation and all penalties

// Bit for bit.
void tiny_assert_same(const engine_sampled *a, const engine_sampled *b, int n);

// A cmocka test once per backend; its *state is the backend's name.
#define ON(backend, test)                                                                          \
    { #test " (" backend ")", test, NULL, NULL, (void *)(uintptr_t)backend }
#define ALL(test) ON("ref", test), ON("avx2", test), ON("avx512", test)

#endif
