// A router with its process-wide parts on private servers, a client that records what it is told,
// and a scripted worker that speaks the real worker's side of the queue. For tests of router/ and
// of whatever stands on it. Failures end the test through cmocka's assertions.
#ifndef TESTS_SUPPORT_ROUTER_LIFE_H
#define TESTS_SUPPORT_ROUTER_LIFE_H
#include <pthread.h>
#include <stdbool.h>
#include "base/pg.h"
#include "router/request.h"

#define LIFE_TENANT "01900000-0000-7000-8000-00000000000a"
#define LIFE_USER "01900000-0000-7000-8000-00000000000b"
#define LIFE_KEY "01900000-0000-7000-8000-00000000000c"
#define LIFE_TIER "135m"

// ---- the gateway's side; everything on the calling thread
typedef struct life {
    config c;
    catalogue_entry entry;
    secret_ring ring;
    router_shared *s;
    loop *l;
    router *r;
    redis *redis; // for looking and meddling
    pg *db;
} life;

void life_configure(life *f, const char *data_dir); // limits may be changed before life_open
void life_open(life *f);                            // and waits until the router has its lease
void life_close(life *f);
void life_empty(void); // applies migrations once, then empties Redis and the ledger
// Turns the loop until done(ctx), at most ms. False: it was not done in time.
bool life_run(life *f, bool (*done)(void *ctx), void *ctx, int ms);
void life_wait(life *f, int ms);               // turns the loop for ms
int64_t life_number(life *f, const char *sql); // the one value of a query, -1: no row
char *life_text(life *f, const char *sql);     // caller frees; NULL: no row
// A limit in force from the next life_open on; column as in the table limits.
void life_limit(life *f, const char *scope, const char *column, int64_t value);
bool life_wait_rows(life *f, int n, int ms); // until the ledger has n rows and nothing is open

// ---- a client
typedef struct life_client life_client;
struct life_client {
    life *f;
    request *q;
    request_spec spec;
    bool takes;     // its socket takes every frame at once
    int takes_late; // else so many tokens of choice 0, when the request is about to end early
    life_client *takes_for; // whose tokens those are; NULL: its own
    int cancel_at;          // tokens after which it goes away; 0: never
    int cancel_why;         // request_outcome
    int n[JOB_CHOICES];
    int32_t ids[JOB_CHOICES][256];
    char text[512];
    bool is_ended;
    request_end end;
};

void life_client_init(life_client *c, life *f, int max_tokens); // streamed, prompt of 5 tokens
int life_submit(life_client *c, err *e);
bool life_client_ended(void *client);

// ---- a worker, on a thread of its own
typedef struct life_worker life_worker;
typedef void life_script(life_worker *w);
struct life_worker {
    life_script *script;
    const life *f;
    void *ctx; // the script's
    pthread_t thread;
    redis *r;
    uint64_t id, run; // run: of the last claim
    queue_claimed claimed;
    job job; // of the last claim
    arena a;
    reply_finish finish;    // of LAST frames; FINISH_NONE: stop
    int begun_ms;           // the wait that BEGUN frames tell
    int attempt_shift;      // added to the attempt of frames: to make foreign ones
    volatile bool is_alive; // the last reply was taken
};

life_worker *life_worker_start(const life *f, life_script *script, void *ctx);
void life_worker_join(life_worker *w);
// Inside a script:
bool life_claim(life_worker *w, int ms); // waits for an entry, takes and opens its job
void life_send(life_worker *w, unsigned flags, int choice, int from, int n, const char *text);
void life_send_claim(life_worker *w);
// A whole answer: CLAIM, PREFILLED with the first token, then one token a frame up to n, LAST.
void life_answer(life_worker *w, int n);
// The token a choice has at a position, so that order and repeats show.
int32_t life_token(int choice, int position);

#endif
