// A run: one claimed job and its choices. A choice is the prompt plus what was made of it, of which
// `fed` tokens lie in the engine; it decodes when one token is left to feed and prefills when there
// are more. A choice may lose its place in the engine (preempted) and feed everything again later:
// the tokens are all of its state.
#ifndef WORKER_RUN_H
#define WORKER_RUN_H
#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "engine/engine.h"
#include "router/job.h"
#include "router/queue.h"
#include "router/reply.h"
#include "worker/text.h"

typedef struct choice {
    engine_seq *seq; // NULL: has no place in the engine
    int32_t *tokens; // prompt, then made
    int n, cap;      // n = n_prompt + made
    int fed;
    text_stream text;
    bool done;
} choice;

typedef struct run {
    struct run *next; // in order of arrival
    arena a;          // the job's memory
    job j;
    uint64_t number;
    lane lane;
    double weight;
    int64_t last_ms; // monotonic: when its last frame was sent
    bool prefilled;  // said so
    int n_live;      // choices that are not done
    choice choices[JOB_CHOICES];
} run;

// Takes the job over: *a belongs to the run after. so_far is replayed into the choices' texts.
run *run_new(arena *a, const job *j, uint64_t number, const queue_claimed *c, const model *m);
void run_free(run *r, engine *g);
int choice_made(const run *r, const choice *c);
static inline int choice_left(const choice *c) { return c->n - c->fed; } // tokens still to feed

// A token was sampled: appends it, decides whether the choice ends, and describes it in f (text
// appended to text; f->text is not set).
void choice_take(run *r, choice *c, const engine_sampled *s, const model *m, int max_context,
                 reply_frame *f, buf *text);
void choice_end(run *r, choice *c, engine *g); // gives its place back

#endif
