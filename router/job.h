// The job: what a worker needs to run a request, and nothing else. Encoded little-endian with a
// version byte, sealed with the cluster key (AES-256-GCM, the id and attempt bound as associated
// data) and put under its own Redis key; it passes through no function.
#ifndef ROUTER_JOB_H
#define ROUTER_JOB_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"
#include "base/secret.h"
#include "model/sampling.h"

#define JOB_CHOICES 8
#define JOB_STOPS 4

typedef struct job_stop {
    const char *text;
    size_t n;
} job_stop;

typedef struct job {
    char id[ID_UUID_TEXT]; // of the request
    int attempt;           // from 1
    uint64_t gateway;      // incarnation that owns the request: its reply stream is tg:g:{gateway}
    int64_t ms_left;       // until the deadline, when encoded
    char tenant[ID_UUID_TEXT];   // salts the prefix cache
    char model[64], adapter[64]; // adapter "" = none
    const int32_t *prompt;
    int n_prompt;
    int n_choices;
    struct { // tokens a choice has already given to the gateway in earlier attempts
        const int32_t *ids;
        int n;
        bool finished; // nothing more to do for this choice
    } so_far[JOB_CHOICES];
    int max_tokens; // per choice, so_far included; the worker never makes more (the gateway may
                    // cancel earlier)
    sampling_params sampling;
    job_stop stops[JOB_STOPS];
    int n_stops;
    bool ignore_end;    // generate past end tokens
    bool fim;           // the model's FIM end tokens end it too
    bool echo_logprobs; // send the prompt's log-probabilities in PROMPT frames
} job;

void job_encode(const job *j, buf *out);
// Pointers of j are from the arena. ERR_FORMAT for anything malformed.
int job_decode(const void *p, size_t n, arena *a, job *j, err *e);
int job_seal(const job *j, const secret_ring *ring, buf *out, err *e);
int job_open(const void *p, size_t n, const char *id, int attempt, const secret_ring *ring,
             arena *a, job *j, err *e);

#endif
