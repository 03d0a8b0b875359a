// Supersession: of the requests of one session (the same key, task and session name) the newest is
// wanted, the older ones end. The router's loop. Within the process each router is told by letter,
// and a running number says who is older; across gateways one key in Redis says who was the last,
// and its gateway finds the word in its reply stream. Redis is asked for requests that name a
// session and for no others; without it the older one runs to its end.
#include "router/request_internal.h"
#include "base/secret.h"
#include "router/wire.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- who stands for which session: router.sessions, chained; entered by session_enter, left when
// the request closes

static request **chain_of(router *r, const char *session) {
    const char first[3] = {session[0], session[1], '\0'};
    return &r->sessions[strtoul(first, NULL, 16)];
}

void session_leave(request *q) {
    if (!q->session[0])
        return;
    request **at = chain_of(q->r, q->session);
    while (*at != q)
        at = &(*at)->next_of_session;
    *at = q->next_of_session;
    q->session[0] = '\0';
}

static void name_session(request *q) {
    const request_spec *s = q->spec;
    const char *const parts[] = {s->key, s->task, s->session};
    uint8_t hash[32];
    buf b = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        buf_put(&b, parts[i], strlen(parts[i]) + 1); // with its NUL: parts cannot run together
    secret_sha256(b.data, b.len, hash);
    buf_release(&b);
    for (size_t i = 0; i < SESSION_BYTES; i++)
        snprintf(q->session + 2 * i, 3, "%02x", hash[i]);
}

// ---- within the process

static void supersede(router *r, const char *session, uint64_t turn) {
    for (request *q = *chain_of(r, session), *next; q; q = next) {
        next = q->next_of_session;
        if (q->turn < turn && strcmp(q->session, session) == 0)
            request_cancel(q, OUTCOME_SUPERSEDED);
    }
}

typedef struct newer { // a letter to the other routers
    char session[2 * SESSION_BYTES + 1];
    uint64_t turn;
} newer;

static void on_newer(router *r, void *arg) {
    newer *x = arg;
    if (r)
        supersede(r, x->session, x->turn);
    free(x);
}

static void tell_routers(const request *q) {
    router_shared *s = q->r->s;
    pthread_mutex_lock(&s->mutex);
    for (router_slot *slot = s->slots; slot; slot = slot->next) {
        if (slot == q->r->slot)
            continue;
        newer *x = malloc(sizeof *x);
        if (!x)
            fatal("out of memory for a letter");
        memcpy(x->session, q->session, sizeof x->session);
        x->turn = q->turn;
        mailbox_post(slot->box, on_newer, x);
    }
    pthread_mutex_unlock(&s->mutex);
}

// ---- across gateways

static bool is_of_this_process(router_shared *s, uint64_t gateway) {
    bool found = false;
    pthread_mutex_lock(&s->mutex);
    for (const router_slot *slot = s->slots; slot; slot = slot->next)
        found |= atomic_load(&slot->gateway) == gateway;
    pthread_mutex_unlock(&s->mutex);
    return found;
}

// v: who was the last before us, "gateway id". One of this process was told by letter, where the
// order is known; and who was superseded meanwhile tells nobody.
static void on_last(void *ctx, const redis_value *v) {
    request *q = ctx;
    router *r = q->r;
    uint64_t gateway;
    char id[ID_UUID_TEXT];
    const char *last = redis_value_kind(v) == REDIS_STRING ? redis_value_str(v, NULL) : NULL;
    if (last && q->outcome != OUTCOME_SUPERSEDED && !r->is_closing &&
        sscanf(last, "%16" SCNx64 " %36s", &gateway, id) == 2 &&
        !is_of_this_process(r->s, gateway)) {
        queue_supersede_command(gateway, id, &r->c);
        command_send(&r->c, r->calls, NULL, NULL);
    }
    request_unref(q);
}

static void ask_for_last(request *q) {
    router *r = q->r;
    command_text(&r->c, "SET");
    command_printf(&r->c, "tg:{%s}:sess:%s", q->meta->tenant, q->session);
    command_printf(&r->c, "%016" PRIx64 " %s", r->gateway, q->id);
    command_words(&r->c, 2, (const char *const[]){"GET", "PX"});
    command_int(&r->c, q->spec->deadline_ms); // then it is over in any case
    request_ref(q);
    command_send(&r->c, r->calls, on_last, q);
}

void session_take_word(router *r, const char *id, size_t n) {
    request *q = wire_is_uuid(id, n) ? request_find(r, id) : NULL;
    if (q && q->session[0])
        request_cancel(q, OUTCOME_SUPERSEDED);
}

// ---- a request that names a session begins

void session_enter(request *q) {
    router *r = q->r;
    if (!q->spec->session)
        return;
    name_session(q);
    q->turn = atomic_fetch_add(&r->s->turns, 1);
    supersede(r, q->session, q->turn);
    tell_routers(q);
    q->next_of_session = *chain_of(r, q->session);
    *chain_of(r, q->session) = q;
    ask_for_last(q);
}
