// What the files of one request's life share: the router, its table and lists, and the request.
// Everything here belongs to the router's loop thread, except router_slot and what router_shared
// says. Internal to router/.
#ifndef ROUTER_REQUEST_INTERNAL_H
#define ROUTER_REQUEST_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#include "base/metric.h"
#include "base/thread.h"
#include "router/command.h"
#include "router/journal.h"
#include "router/limits.h"
#include "router/mailbox.h"
#include "router/quota.h"
#include "router/recorder.h"
#include "router/request.h"
#include "router/sweep.h"

#define ATTEMPTS_MOST 3
#define RETURNS_MOST 16 // from then on one that is given back is a lost one
#define SILENCE_MS 5000 // R2
#define TRUST_MS 4000   // R4
#define LEASE_MS 5000
#define SETTLE_MS 2000 // how long a client waits for the settlement
#define SLICE 512      // tokens per choice of one extension
#define SLICE_EARLY 64 // asked for so many tokens before the grant ends
#define FENCE_SLOTS 256
#define FULL_SLOTS 64
#define SESSION_BYTES 16   // of the SHA-256 that names a session
#define SESSION_CHAINS 256 // by the first byte
#define TENANT_SLOTS 64

typedef struct quota_loader quota_loader;

typedef enum request_state {
    HOLDING,
    QUEUED,
    RUNNING,
    CLOSING,
    UNRECORDED,
    N_STATES
} request_state;

typedef struct request_list { // doubly linked by request.prev/next, the oldest first
    request *first, *last;
    int n;
} request_list;

typedef struct request_choice {
    int32_t *ids; // generated tokens as received; the whole state of a continuation
    int n, cap;
    int handed;          // tokens the client's socket took, <= n
    int n_steps;         // of the engine, that brought tokens
    int n_prompt_frames; // prompt tokens passed on (echo)
    bool is_last;        // nothing follows
    reply_finish finish;
} request_choice;

struct request {
    request *prev, *next; // in router.lists[state]
    request *chain;       // of router.table
    router *r;
    request_state state;
    int refs; // the table's, and one per call under way

    char id[ID_UUID_TEXT];
    recorder_entry *entry; // holds meta and row; the recorder's once the client was told, NULL then
    usage_meta *meta;      // of the entry
    usage_row *row;        // of the entry
    arena a; // everything that only lives until the client was told: while Postgres is away
             // requests wait in UNRECORDED by the hundred thousand
    request_spec *spec;      // from the arena, with all it points to
    quota_limits *limits;    // from the arena
    request_choice *choices; // from the arena, spec->n_choices
    request_end *end;        // from the arena
    request_events events;
    void *ctx;
    int64_t accepted_us, deadline_ms; // monotonic; allowed: deadline_ms since then
    loop_timer *deadline;

    // quota
    int granted, most; // tokens per choice: as of now, and what it may grow to
    int asked;         // what the job of the current attempt allows the worker
    int n_holds;       // hold calls sent
    bool is_extending;
    char limited_by[8]; // kind of the limit that ends the grant, "" = none
    rates rates;        // as of the hold

    // session (request_session.c)
    char session[2 * SESSION_BYTES + 1]; // in hexadecimal, "" = none, or not any more
    uint64_t turn;                       // of router_shared.turns: the higher, the newer
    request *next_of_session;            // in router.sessions

    // journal
    journal_mark mark;
    bool is_durable;
    request *next_undurable;  // in router.undurable
    request *next_unreleased; // in router.unreleased

    // attempt: compared with frames by this thread only (R1)
    queue_place
        place;  // of the current attempt; tier, tenant and id point into the entry and this struct
    int n_lost; // attempts given up: silence, a gap, a refusal; not those that a worker gave back
    int n_returned; // those
    bool has_run;
    bool is_begun; // a worker made its first pass with it
    uint64_t run, worker;
    int64_t heard_ms;        // the last frame of the run
    int64_t resume_until_ms; // a stream that lost its worker waits until then; 0: none does
    int64_t left_queue_ms;   // since when the queue does not know the entry; 0: it does
    bool is_prefilled;
    int cached;
    buf kept; // frames that wait, until A is durable or for an extension: u32 length, reply

    // progress
    int reported; // tokens of the last progress call
    bool reported_prefilled;

    // the end
    request_outcome outcome;
    bool must_stop; // the worker goes on although we are done
    bool is_settled, is_settling, has_given_up;
    int64_t settle_until_ms;
    int64_t queue_ms, first_token_ms, engine_us;
    int queue_steps;
};

typedef struct fence_slot { // when a run was last told to stop
    uint64_t worker, run;
    int64_t told_ms;
} fence_slot;

typedef struct full_slot { // a tenant whose queue was full a moment ago
    char tenant[ID_UUID_TEXT], tier[16];
    int64_t until_ms, retry_ms;
} full_slot;

typedef struct tenant_slot { // a tenant that stood in tg:tenants a moment ago
    char tenant[ID_UUID_TEXT];
    int64_t until_ms;
} tenant_slot;

typedef struct router_slot { // what other threads see of a router; the list is under shared.mutex
    struct router_slot *next;
    mailbox *box;
    _Atomic uint64_t gateway;         // 0: no incarnation now
    _Atomic int64_t trusted_until_ms; // monotonic
    _Atomic bool is_draining;
} router_slot;

typedef struct router_metrics {
    metric *outcomes[OUTCOME_UNKNOWN + 1];
    metric *states[N_STATES];
    metric *fenced, *redelivered, *leases_lost, *refused, *replayed, *queue_seconds, *queue_steps,
        *first_token_seconds;
} router_metrics;

struct router_shared {
    const config *c;
    secret_ring cluster;
    journal *j;
    recorder *recorder;
    sweeper *sweeper;
    quota_loader *loader;
    limits *limits;
    pthread_mutex_t mutex;
    router_slot *slots;     // entered by router_open, left by router_close
    _Atomic uint64_t turns; // taken by requests that name a session
    router_metrics metrics;
};

struct router {
    router_shared *s;
    loop *l;
    router_slot *slot;
    journal_watch *watch;
    aredis *calls; // every command
    aredis *ear;   // reads the reply stream, blocking
    loop_timer *tick;
    int n_ticks;

    // the incarnation (lease.c)
    uint64_t gateway;
    bool has_lease, is_beginning;
    int64_t trusted_until_ms;
    char read_from[48]; // last id read from the reply stream
    bool is_reading;

    request *table[4096];              // by id, chained
    request *sessions[SESSION_CHAINS]; // by session, chained: those that are not closed
    request_list lists[N_STATES];
    request *undurable, *undurable_last; // in order of their line A; entered by accepting, left by
                                         // the journal's letter; each holds a reference
    request *unreleased; // refused, with a hold that Redis may still have; entered by a release
                         // without an answer, left by the next one; each holds a reference
    fence_slot fences[FENCE_SLOTS];
    full_slot fulls[FULL_SLOTS];
    int next_full;
    tenant_slot tenants[TENANT_SLOTS]; // of this incarnation
    bool is_draining, is_closing;
    void (*drained)(void *ctx);
    void *drained_ctx;

    command c; // scratch
    arena scratch;
};

// ---- request.c: table and lists
request *request_find(router *r, const char *id);
void request_move(request *q, request_state to);
void request_ref(request *q);
void request_unref(request *q); // the last one frees
void request_release_work(request *q);
void request_forget(request *q);                    // leaves list and table
void request_describe(request_outcome why, err *e); // what a client is told of it
bool request_is_open(const request *q);             // queued or running: frames may move it
int64_t request_age_ms(const request *q);
void router_check_drained(router *r);

// ---- request_hold.c
void request_hold(request *q);
void request_extend(request *q); // unless one is under way or there is nothing to be had
void router_take_durable(router *r, void *arg); // mailbox_fn of the journal
void router_let_go_undurable(router *r);
void router_release_holds(router *r); // those whose release was not answered
void router_let_go_unreleased(router *r);

// ---- request_session.c: a newer request of a session ends the older ones
void session_enter(request *q); // before its hold is sent, so that theirs are released first
void session_leave(request *q); // again: nothing
void session_take_word(router *r, const char *id,
                       size_t n); // another gateway has a newer one than id

// ---- quota_load.c: brings a scope from the ledger to Redis, on a thread of its own
quota_loader *quota_loader_open(const config *c);
void quota_loader_close(quota_loader *w);
// Then request_hold is called again, or the request refused.
void quota_loader_submit(quota_loader *w, request *q, const quota_answer *miss);

// ---- request_attempt.c: enqueue, redelivery
void request_enqueue(request *q, const queue_place *old);
void request_redeliver(request *q, const char *why);
// Its worker goes and gave it back: the next attempt, and nothing was lost, RETURNS_MOST times.
void request_give_back(request *q);
void request_check_waiting(router *r); // scores of all queued entries
bool router_is_full(router *r, const request_spec *spec, err *e);

// ---- request_run.c: frames
void router_take_reply(router *r, const reply *m);
void request_take_kept(request *q);
void request_check_silence(router *r, int64_t now_ms);
void request_finish_if_complete(request *q);

// ---- request_close.c
void request_close(request *q, request_outcome why, const err *e);  // -> closing; e NULL for OK
void request_refuse(request *q, request_outcome why, const err *e); // never accepted: no row
// Never accepted either: an earlier request's answer is told.
void request_replay(request *q, const char *answer, size_t n);
// 503: it was never accepted.
void request_refuse_away(request *q, const char *message);
void request_check_closing(router *r, int64_t now_ms);
void request_tell_if_due(request *q);                // settled (or given up) and durable
void request_close_now(request *q);                  // router_close: without waiting for Redis
void router_close_requests(router *r, const err *e); // all: gateway_lost
void request_report(request *q);
void request_report_progress(router *r); // of all whose handed tokens changed

// ---- lease.c
void lease_open(router *r);
void lease_close(router *r);
bool lease_is_trusted(const router *r);
void lease_check(router *r); // ends the incarnation when its trust has run out
void lease_renew(router *r);
void lease_trim(router *r);
void lease_load_libraries(router *r); // after Redis answered that one is missing

#endif
