// A stepper with its engine (a tiny model) and a gateway's letterbox, driven pass by pass, for
// tests of worker/. Failures end the test through cmocka's assertions; one thread.
#ifndef TESTS_SUPPORT_STEP_BENCH_H
#define TESTS_SUPPORT_STEP_BENCH_H
#include <stdint.h>
#include "tests/support/letterbox.h"
#include "worker/adapters.h"
#include "worker/step.h"

#define BENCH_ROOMY 4096  // positions of KV that are never short
#define BENCH_CONTEXT 512 // longest sequence, where the model does not end before

typedef struct bench {
    engine *g;
    stepper s;
    outbox *o;
    redis *r;
    letterbox m;
    run *runs, **last;
    uint64_t n_runs;
    uint8_t salt[ENGINE_SALT_BYTES]; // of the jobs that are added
    lane lane;                       // the same
    int charged, n_preempted, most_used;
} bench;

extern model *bench_model;
extern int32_t bench_prompt[512]; // ordinary bytes

// Group setup and teardown: the model and the prompt.
int bench_setup(void **state);
int bench_teardown(void **state);

void bench_open(bench *b, int slots, int step_tokens, int kv_tokens); // of bench_model
void bench_open_model(bench *b, const model *m, int slots, int step_tokens, int kv_tokens);
void bench_close(bench *b);
run *bench_add(bench *b, job *j); // the job becomes this bench's gateway's
void bench_step(bench *b);
void bench_run(bench *b);                        // until all are done
uint64_t bench_seats(const bench *b, int *used); // who has a place, as bits
told *bench_told(bench *b, const job *j);
void bench_same(const told *a, const told *b, int n_choices);

void bench_ignore(void *ctx);                 // for adapters_new: bench_wait asks by itself
adapter *bench_wait(adapters *s, adapter *a); // until it is loaded or failed

// A job at temperature 1, its number the seed; n_prompt ids of bench_prompt from `from` on.
job bench_job(const letterbox *m, int number, int from, int n_prompt, int max_tokens);
// Opens b and runs what a job gets in an engine of its own, with no fork and its prompt in one
// piece.
void bench_alone(bench *b, job *j);

#endif
