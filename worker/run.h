// A run: one claimed job and its choices. A choice is the prompt plus what was made of it, of which
// `fed` tokens lie in the engine; it decodes when one token is left to feed and prefills when there
// are more. A choice may lose its place in the engine (preempted) and feed everything again later:
// the tokens are all of its state.
#ifndef WORKER_RUN_H
#define WORKER_RUN_H
#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/secret.h"
#include "engine/engine.h"
#include "router/job.h"
#include "router/queue.h"
#include "router/reply.h"
#include "worker/adapters.h"
#include "worker/draft.h"
#include "worker/text.h"

typedef struct choice {
    engine_seq *seq; // NULL: has no place in the engine
    int32_t *tokens; // prompt, then made
    int n, cap;      // n = n_prompt + made
    int fed;
    draft_pace pace;
    text_stream text;
    bool done;
} choice;

typedef struct run_group { // the runs of one tenant in one lane, as of a step; kept by the first
    struct run *next;      // the first run of another group
    int seats;             // places in the engine
    int seen;              // of them, by whoever goes through the runs
    struct run *prefills;  // its first run with a prompt to feed; NULL: none
} run_group;

typedef struct run {
    struct run *next; // in order of arrival
    struct run *lead; // first run of its group
    run_group group;  // if it leads
    arena a;          // the job's memory
    job j;
    uint64_t number;
    uint8_t salt[ENGINE_SALT_BYTES]; // of the prefix cache
    adapter *adapter;                // held, loaded or not yet; NULL: none
    int cached; // prompt tokens that were there when its first choice got a place; -1: none has yet
    lane lane;
    double weight;
    int64_t last_ms;    // monotonic: when its last frame was sent
    int64_t arrived_us; // monotonic: when its request was accepted
    // monotonic: when the last step that made a token of it began, and the one before; for the log
    int64_t step_us, step_before_us;
    bool begun;     // a pass had a row of it
    bool prefilled; // said so
    int n_live;     // choices that are not done
    choice choices[JOB_CHOICES];
} run;

// Who may share KV with a job: HMAC-SHA-256 under the newest cluster key of tenant, model revision,
// adapter and type of KV. Nothing a client chooses is in it.
void run_salt(const secret_ring *cluster, const job *j, const char *model_revision,
              const char *kv_name, uint8_t out[ENGINE_SALT_BYTES]);
// Takes the job over: *a belongs to the run after. so_far is replayed into the choices' texts.
run *run_new(arena *a, const job *j, uint64_t number, const queue_claimed *c, const model *m,
             const uint8_t salt[ENGINE_SALT_BYTES]);
// NULL for a job that wants its prompt described: all of it has to be computed.
const uint8_t *run_get_salt(const run *r);
void run_free(run *r, engine *g);
int choice_made(const run *r, const choice *c);
static inline bool run_is_ready(const run *r) { return !r->adapter || r->adapter->a; }
static inline bool choice_waits(const choice *c) { return !c->done && !c->seq; } // for a place
static inline int choice_left(const choice *c) { return c->n - c->fed; } // tokens still to feed

// Appends guesses of what follows behind tokens[n), where they stand until the step decided;
// returns how many, at most `most`.
int choice_guess(choice *c, int most);
// A token was sampled: appends it, decides whether the choice ends, and describes it in f (text
// appended to text; f->text is not set).
void choice_take(run *r, choice *c, const engine_sampled *s, const model *m, int max_context,
                 reply_frame *f, buf *text);
void choice_end(run *r, choice *c, engine *g); // gives its place back

#endif
