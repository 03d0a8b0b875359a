// A call: one exchange of the API with its route, its caller and what is logged of it. Handlers
// answer through it, so that every answer is logged, counted and worded alike. Lives in the
// exchange's arena; owner: the reactor's thread, but for the time that call_run gives it to a pool
// thread.
#ifndef SERVER_OPENAI_CALL_H
#define SERVER_OPENAI_CALL_H
#include <stdbool.h>
#include <stdint.h>
#include "auth/auth.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/loop.h"
#include "base/thread.h"
#include "model/catalogue.h"
#include "router/assign.h"
#include "router/request.h"
#include "server/http.h"
#include "server/openai_request.h"
#include "server/routes.h"

#define REVOKED_KEPT 64

typedef struct seat { // what the handlers of one reactor work with; reactor_user
    loop *loop;
    router *router;
    auth *auth;
    assign *assign;
    catalogue *catalogue;
    pool *pool;
    openai_limits limits; // replaced by a reload, on the reactor's thread
    buf scratch;          // for events; empty between uses
    int n_calls;          // on_request was called, not ended
    uint64_t n_revoked;   // keys revoked so far; the last ones are revoked[n % REVOKED_KEPT]
    char revoked[REVOKED_KEPT][ID_UUID_TEXT];
    bool is_stopping;    // the loop stops when n_calls becomes 0
    _Atomic bool is_cut; // written by the main thread: the gateway ends, clients do not leave
} seat;

typedef struct call_record { // for log and metrics; filled as it becomes known
    const char *model;       // borrowed until the end; NULL: unknown
    const char *outcome;     // static; NULL: "ok" or "refused", by the status
    int prompt_tokens, cached_tokens, completion_tokens;
    int64_t first_token_us; // monotonic; 0: none
} call_record;

struct call {
    exchange *x;
    seat *seat;
    const route *route;
    const char *rest;     // of the path
    principal who;        // filled before the handler runs
    uint64_t n_revoked;   // seat.n_revoked when its key was good
    openai_limits limits; // as of the start
    bool is_gone;         // the client went: nothing may be said; call_abandon is due
    call_record record;
    bool is_working; // a pool thread has it
    bool is_streaming;
    bool is_counted; // in seat.n_calls
    void *user;      // the handler's
    // The handler's. gone: end the work, then call_abandon, now or later; NULL: call_abandon is
    // called for it. taken: as in exchange_events.
    void (*gone)(call *c);
    void (*taken)(call *c, uint64_t mark);
    void (*work)(call *c); // of call_run
    void (*after)(call *c);
};

// http_options.on_head and on_request of the API listener. The reactor's user is a seat.
void call_on_head(exchange *x);
void call_on_request(exchange *x);

// A key was revoked: ends its requests, also those that are not submitted yet.
void seat_revoke(seat *s, const char *key);
// Was its key revoked since the handler was called? -1: yes (ERR_KEY). For handlers that went to
// the pool in between.
int call_check_revoked(const call *c, err *e);

// ---- the answer; each but stream_begin ends the call, which must not be touched after it
void call_reply(call *c, int status, const buf *json);
void call_fail(call *c, const err *e);
void call_abandon(call *c);
void call_stream_begin(call *c);
void call_stream_end(call *c);

// Runs work(c) on a pool thread, then after(c) on the reactor, also when the client went meanwhile
// (gone is not called while work runs; look at is_gone). -1 (ERR_OVERLOADED): nothing will run.
int call_run(call *c, void (*work)(call *c), void (*after)(call *c), err *e);

#endif
