// The incarnation of a router: its random id, its reply stream (whose life in Redis is the lease,
// R4) and the two connections. Owns the connections; the router's loop. Reads reply messages and
// hands them to request_run.c; does not look into them. A lease that is gone never comes back: what
// is open ends with an error and the router takes a new id.
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/log.h"
#include "router/library.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_MS 2000
#define BLOCK_MS "1000"
#define BLOCK_LIMIT_MS 3000
#define READ_MOST "256"

static void begin(router *r);
static void read_more(router *r);

bool lease_is_trusted(const router *r) {
    return r->has_lease && clock_mono_ms() < r->trusted_until_ms;
}

static void trust_until(router *r, int64_t until_ms) {
    r->trusted_until_ms = until_ms;
    atomic_store(&r->slot->trusted_until_ms, until_ms);
}

static void put_stream_key(router *r) {
    char key[64];
    queue_key_gateway(key, sizeof key, r->gateway);
    command_text(&r->c, key);
}

// ---- beginning and renewing

typedef struct renewal { // a call under way: it speaks for the incarnation and the moment it was
                         // sent
    router *r;
    uint64_t gateway;
    int64_t sent_ms;
} renewal;

static renewal *note(router *r) {
    renewal *x = malloc(sizeof *x);
    if (!x)
        fatal("out of memory for a lease");
    *x = (renewal){r, r->gateway, clock_mono_ms()};
    return x;
}

static void end_incarnation(router *r, const char *why) {
    err e = {0};
    err_set(&e, ERR_DEPENDENCY, NULL, "the gateway lost its place in the queue");
    log_event(LOG_WARN, "lease.lost", "{s:s,s:i}", "why", why, "open",
              r->lists[QUEUED].n + r->lists[RUNNING].n);
    metric_add(r->s->metrics.leases_lost, 1);
    r->has_lease = false;
    atomic_store(&r->slot->gateway, 0);
    trust_until(r, 0);
    router_close_requests(r, &e);
    begin(r);
}

static void on_renewed(void *ctx, const redis_value *v) {
    renewal *x = ctx;
    router *r = x->r;
    bool is_mine = r->has_lease && r->gateway == x->gateway;
    if (is_mine && redis_value_kind(v) == REDIS_INT) {
        if (redis_value_int(v) == 1)
            trust_until(r, x->sent_ms + TRUST_MS);
        else
            end_incarnation(r, "the reply stream is gone");
    }
    free(x);
}

void lease_renew(router *r) {
    if (!r->has_lease) {
        begin(r);
        return;
    }
    command_text(&r->c, "PEXPIRE");
    put_stream_key(r);
    command_int(&r->c, LEASE_MS);
    command_send(&r->c, r->calls, on_renewed, note(r));
    read_more(r);
}

static void on_begun(void *ctx, const redis_value *v) {
    renewal *x = ctx;
    router *r = x->r;
    char key[64];
    queue_key_gateway(key, sizeof key, r->gateway);
    r->is_beginning = false;
    if (redis_value_len(v) == 2 && !r->is_closing) {
        r->has_lease = true;
        atomic_store(&r->slot->gateway, r->gateway);
        trust_until(r, x->sent_ms + TRUST_MS);
        log_event(LOG_INFO, "lease.begun", "{s:s}", "gateway", key + strlen("tg:g:"));
        read_more(r);
    }
    free(x);
}

// A new id, its stream and the stream's life, in one transaction: no stream without an end is left.
static void begin(router *r) {
    if (r->is_beginning || r->is_closing || !aredis_connected(r->calls))
        return;
    r->is_beginning = true;
    r->gateway = id_random_u64() | 1; // never 0
    memset(r->tenants, 0, sizeof r->tenants);
    snprintf(r->read_from, sizeof r->read_from, "0-0");
    command_text(&r->c, "MULTI");
    command_send(&r->c, r->calls, NULL, NULL);
    command_text(&r->c, "XADD");
    put_stream_key(r);
    command_words(&r->c, 3, (const char *const[]){"*", "begin", "1"});
    command_send(&r->c, r->calls, NULL, NULL);
    command_text(&r->c, "PEXPIRE");
    put_stream_key(r);
    command_int(&r->c, LEASE_MS);
    command_send(&r->c, r->calls, NULL, NULL);
    command_text(&r->c, "EXEC");
    command_send(&r->c, r->calls, on_begun, note(r));
}

void lease_check(router *r) {
    if (r->has_lease && clock_mono_ms() >= r->trusted_until_ms)
        end_incarnation(r, "it was not renewed in time");
}

// What was read is not needed any more.
void lease_trim(router *r) {
    if (!r->has_lease || strcmp(r->read_from, "0-0") == 0)
        return;
    command_text(&r->c, "XTRIM");
    put_stream_key(r);
    command_text(&r->c, "MINID");
    command_text(&r->c, r->read_from);
    command_send(&r->c, r->calls, NULL, NULL);
}

// ---- the reply stream

typedef struct reading {
    router *r;
    uint64_t gateway;
} reading;

static void take_message(router *r, const redis_value *message) {
    const redis_value *fields = redis_value_at(message, 1);
    const char *id = redis_value_str(redis_value_at(message, 0), NULL);
    size_t n;
    const char *bytes = redis_value_str(redis_value_at(fields, 1), &n);
    if (id)
        snprintf(r->read_from, sizeof r->read_from, "%s", id);
    if (bytes && redis_value_is(redis_value_at(fields, 0), QUEUE_SUPERSEDED)) {
        session_take_word(r, bytes, n);
        return;
    }
    if (!bytes || !redis_value_is(redis_value_at(fields, 0), "r"))
        return;
    reply m;
    err e = {0};
    if (reply_decode(bytes, n, &r->scratch, &m, &e))
        log_event(LOG_WARN, "reply.malformed", "{s:s}", "error", e.message);
    else
        router_take_reply(r, &m);
    arena_clear(&r->scratch);
}

static void on_read(void *ctx, const redis_value *v) {
    reading *x = ctx;
    router *r = x->r;
    const redis_value *messages = redis_value_at(redis_value_at(v, 0), 1);
    bool is_mine = r->has_lease && r->gateway == x->gateway;
    free(x);
    r->is_reading = false; // after a loss or an error lease_renew or on_ear_state goes on
    for (size_t i = 0; is_mine && i < redis_value_len(messages); i++) {
        lease_check(r); // before each write
        if (!r->has_lease)
            break;
        take_message(r, redis_value_at(messages, i));
    }
    if (v && redis_value_kind(v) != REDIS_ERROR)
        read_more(r);
}

static void read_more(router *r) {
    if (r->is_reading || r->is_closing || !r->has_lease || !aredis_connected(r->ear))
        return;
    reading *x = malloc(sizeof *x);
    if (!x)
        fatal("out of memory for the reply stream");
    *x = (reading){r, r->gateway};
    r->is_reading = true;
    command_words(&r->c, 6,
                  (const char *const[]){"XREAD", "COUNT", READ_MOST, "BLOCK", BLOCK_MS, "STREAMS"});
    put_stream_key(r);
    command_text(&r->c, r->read_from);
    command_send(&r->c, r->ear, on_read, x);
}

// ---- connections

void lease_load_libraries(router *r) {
    for (int l = LIBRARY_QUEUE; l <= LIBRARY_QUOTA; l++) {
        size_t n;
        const char *text = library_source((library)l, &n);
        command_words(&r->c, 2, (const char *const[]){"FUNCTION", "LOAD"});
        command_bytes(&r->c, text, n);
        command_send(&r->c, r->calls, NULL, NULL); // there already: an error nobody minds
    }
}

static void on_calls_state(void *ctx, bool connected) {
    router *r = ctx;
    if (!connected || r->is_closing)
        return;
    lease_load_libraries(r);
    lease_renew(r); // or begin
    request_check_waiting(r);
}

static void on_ear_state(void *ctx, bool connected) {
    router *r = ctx;
    if (connected)
        read_more(r);
}

void lease_open(router *r) {
    r->calls = aredis_open(r->l, r->s->c->redis_address, on_calls_state, r);
    aredis_set_limit(r->calls, CALL_MS);
    r->ear = aredis_open(r->l, r->s->c->redis_address, on_ear_state, r);
    aredis_set_limit(r->ear, BLOCK_LIMIT_MS);
}

void lease_close(router *r) {
    r->has_lease = false;
    aredis_close(r->calls);
    aredis_close(r->ear);
    r->calls = r->ear = NULL;
}
