// One step: which sequences run (decode rows first, then prefill chunks, under a token budget), and
// what came of it. Owner: the step thread.
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

typedef struct stepper {
    engine *g;
    const model *m;
    int slots;       // sequences in the engine at once
    int step_tokens; // budget of a pass
    int draft_rows;  // a pass of fewer decode rows is filled up to this with guesses; 0: never
    pace pace;
    step_plan plan;
    int64_t n_made, n_guessed, n_right; // tokens since the start, for metrics
} stepper;

void stepper_init(stepper *s, engine *g, const model *m, int slots, int step_tokens, int draft_rows,
                  int prefill_percent);
void stepper_release(stepper *s);
int stepper_used(const run *runs); // sequences in the engine

// Plans and runs one pass over the runs; frames go to o. A choice that cannot go on is ended with a
// FAILED frame. Made tokens are charged through charge(). -1 only when the engine itself is broken.
int stepper_step(stepper *s, run *runs, outbox *o, void (*charge)(void *ctx, const run *r, int n),
                 void *ctx, err *e);

#endif
