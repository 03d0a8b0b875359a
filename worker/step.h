// One step: who has a place in the engine, which sequences run (decode rows first, then prefill
// chunks, under a token budget), and what came of it. A run whose adapter is being loaded gets no
// place yet. Owner: the step thread.
#ifndef WORKER_STEP_H
#define WORKER_STEP_H
#include "engine/engine.h"
#include "worker/outbox.h"
#include "worker/pace.h"
#include "worker/run.h"

typedef struct step_plan { // of one pass; rows and their choices side by side
    engine_row *rows;
    run **runs;
    choice **choices;
    int n, cap;   // cap = slots
    int n_decode; // rows that decode; they come first
    int n_prompt; // tokens of the others
    int n_tokens;
} step_plan;

#define STEPPER_ENDS 1024

typedef struct stepper {
    engine *g;
    const model *m;
    int slots;       // sequences in the engine at once
    int step_tokens; // budget of a pass
    int draft_rows;  // a pass of fewer decode rows is filled up to this with guesses; 0: never
    pace pace;
    step_plan plan;
    int64_t n_made, n_guessed, n_right; // tokens since the start, for metrics
    int64_t n_evicted;                  // places taken back since the start
    int64_t n_steps;                    // passes
    int64_t ends_us[STEPPER_ENDS];      // of the latest passes: pass i at i % STEPPER_ENDS
    int short_seats; // the next run to get a place waits for KV, its tenant has so many places; -1:
                     // none does
} stepper;

void stepper_init(stepper *s, engine *g, const model *m, int slots, int step_tokens, int draft_rows,
                  int prefill_percent);
void stepper_release(stepper *s);
int stepper_used(const run *runs);   // sequences in the engine
int stepper_wanted(const run *runs); // choices that wait for a place
// Passes that ended after then (monotonic); of more than STEPPER_ENDS only so many.
int stepper_ended_since(const stepper *s, int64_t then_us);

// Plans and runs one pass over the runs; frames go to o. A choice that cannot go on is ended with a
// FAILED frame. Made tokens are charged through charge(). -1 only when the engine itself is broken.
int stepper_step(stepper *s, run *runs, outbox *o, void (*charge)(void *ctx, const run *r, int n),
                 void *ctx, err *e);

#endif
