// The life of a request in the gateway that accepted it: holding -> queued -> running -> closing ->
// unrecorded -> gone (request.c tells who moves what). One `router` per reactor is a protocol
// gateway of its own: an incarnation id, a lease, a reply stream, a table of its requests. Journal,
// recorder and sweeper are shared by the process (router_shared).
#ifndef ROUTER_REQUEST_H
#define ROUTER_REQUEST_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/config.h"
#include "base/err.h"
#include "base/id.h"
#include "base/loop.h"
#include "base/secret.h"
#include "model/catalogue.h"
#include "model/sampling.h"
#include "router/queue.h"
#include "router/rate.h"
#include "router/reply.h"

typedef struct router_shared router_shared;
typedef struct router router; // owner: its loop's thread
typedef struct request request;

// Opens the journal in DATA/journal (an earlier one is replayed), starts recorder and sweeper,
// prepares Redis. cluster seals jobs.
int router_shared_open(const config *c, const secret_ring *cluster, router_shared **out, err *e);
void router_shared_close(
    router_shared *s); // after all routers; waits for the recorder's last COMMIT (bounded)
// Is everything there to accept requests? The reason why not, or NULL. For /readyz; any thread.
const char *router_not_ready(const router_shared *s);
int router_open(router_shared *s, loop *l, router **out, err *e);
void router_close(router *r); // ends what is open with an error event first
// No new requests from now on (503); drained(ctx) is called once none is open.
void router_drain(router *r, void (*drained)(void *ctx), void *ctx);
// Every open request ends with an error, is settled, and its worker is told.
void router_end_requests(router *r);

typedef struct request_spec { // everything is copied by router_submit, except what is said
    // UUIDv7 made by this process (the exchange's, so that x-request-id names the row); "" = mint
    // one.
    char id[ID_UUID_TEXT];
    char tenant[ID_UUID_TEXT], user[ID_UUID_TEXT], key[ID_UUID_TEXT];
    double weight; // of the tenant in the queue; 0 = 1
    const catalogue_entry *model;
    char adapter[64];
    lane lane;
    const char *endpoint; // "chat", "completions": static
    const char *task;     // static
    const char *route;    // why this model, for the ledger; NULL: not known
    const int32_t *prompt;
    int n_prompt;
    int n_choices;       // 1..JOB_CHOICES
    int max_tokens;      // per choice; 0: absent (the default is granted)
    bool allow_truncate; // an explicit max_tokens above the headroom shrinks to it
    bool streamed;       // tokens count as handed by request_handed; otherwise when LAST arrived
    sampling_params sampling;
    job_stop stops[JOB_STOPS]; // text is copied
    int n_stops;
    bool ignore_end, fim, echo_logprobs;
    int64_t deadline_ms; // from now; 0: the configured one
    // SHA-256 in hexadecimal, "" = none: of the client's Idempotency-Key, and of its body (together
    // with its path), by which a repeated request and a poisonous one are known.
    char idem[65], body_hash[65];
    // Of the editor, NULL: none. From submission on, older requests with the same key, task and
    // session end as superseded, wherever they run.
    const char *session;
} request_spec;

typedef enum request_outcome {
    OUTCOME_OK, // complete
    OUTCOME_CLIENT_GONE,
    OUTCOME_DEADLINE,
    OUTCOME_OVERLOADED, // the queue was full: 0 tokens
    OUTCOME_WORKER_LOST,
    OUTCOME_DEAD_LETTER,
    OUTCOME_REVOKED,
    OUTCOME_SUPERSEDED, // by a newer request of its session
    OUTCOME_GATEWAY_LOST,
    OUTCOME_FAILED, // engine, Redis, or a settlement that was not ours
    OUTCOME_UNKNOWN,
} request_outcome;
const char *
request_outcome_name(request_outcome o); // as stored in usage.outcome: "ok", "client_gone", ...

typedef struct request_end {
    request_outcome outcome;
    err error;                        // what to tell the client when outcome is not OK
    reply_finish finish[JOB_CHOICES]; // per choice; FINISH_NONE for one that did not end
    int prompt_tokens, cached_tokens, completion_tokens;
    const char *limited_by; // the limit that shortened it, in words ("tokens per day"), or NULL
    rates rates;            // as of the hold
    // OK and not NULL: nothing ran; the stored answer to an earlier request with this
    // Idempotency-Key, valid during end().
    const char *replay;
    size_t n_replay;
} request_end;

typedef struct request_events { // called on the router's loop, never inside router_submit
    void (*frame)(
        void *ctx,
        const reply_frame *f); // tokens in order per choice, fenced; f is valid during the call
    // May be NULL. The request is about to end early: what was written and what the socket does not
    // take now must never be sent; what it takes is told by request_handed inside this call.
    void (*stop)(void *ctx);
    // Exactly once, last; after it the request is no longer the caller's. outcome OK: settled with
    // our own values, so [DONE] may be said.
    void (*end)(void *ctx, const request_end *end);
} request_events;

// Takes the request in: hold -> journal -> enqueue. -1 when it is refused at once (e); otherwise
// end() tells everything later, refusals by quota or a full queue too. *out is the caller's handle
// until end().
int router_submit(router *r, const request_spec *spec, const request_events *events, void *ctx,
                  request **out, err *e);
const char *request_id(const request *q);
int request_granted(const request *q); // tokens per choice it may make as of now
// Its acceptance is on the disk: from then on, and not before, a byte of its answer may leave.
bool request_is_accepted(const request *q);
rates request_rates(const request *q); // as of its hold; nothing limits before that
// The socket took everything up to total generated tokens of a choice.
void request_handed(request *q, int choice, int total);
// The client went away, or its key was revoked, ...: the worker is told, end() follows with that
// outcome.
void request_cancel(request *q, request_outcome why);
// The whole answer to a request that ended OK, was not streamed and had spec.idem: what later ones
// with this Idempotency-Key get. n 0, or too much to keep (REQUEST_ANSWER_BYTES): the key is free.
#define REQUEST_ANSWER_BYTES (256 * 1024)
void router_store_answer(router *r, const char *tenant, const char *idem, const char *id,
                         const void *p, size_t n);
// Closes every request of this key (revoked): end() with OUTCOME_REVOKED.
void router_cancel_key(router *r, const char *key);

#endif
