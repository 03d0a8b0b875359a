// null_worker CONFIG TIER GAP_MS: a worker without an engine, so that a bench measures the gateway.
// It claims, opens and answers jobs as worker/worker.c does, with its listener and outbox: CLAIM at
// once, then a step with the answer and LAST; a job whose max_tokens is over ANSWER_TOKENS gets one
// token every GAP_MS. Steps are spread over time as those of many workers would be: each
// millisecond has one of its own. Ends with SIGTERM. A developer's tool: any failure ends it.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/config.h"
#include "base/log.h"
#include "base/secret.h"
#include "router/queue.h"
#include "tests/bench/gateway/token.h"
#include "worker/inbox.h"
#include "worker/listen.h"
#include "worker/outbox.h"

#define CLAIM_MOST 64
#define CLAIM_MS 1000
#define GAP_MOST 1000
#define TOKEN_ID 65

typedef struct run {
    struct run *next; // in null_worker.due[slot]
    char id[ID_UUID_TEXT];
    int attempt, made, most;
    uint64_t number, gateway;
} run;

typedef struct null_worker {
    const char *tier;
    int gap_ms;
    redis *r;
    secret_ring cluster;
    inbox *in;
    outbox *out;
    uint64_t n_runs;
    int64_t claim_ms, ticked_ms;
    run *due[GAP_MOST]; // by the millisecond, modulo gap_ms, of their steps
    int n_paced;
} null_worker;

static void must(int rc, const err *e) {
    if (rc)
        fatal("%s", e->message);
}

static void drop_gateway(void *ctx, uint64_t gateway) {
    null_worker *w = ctx;
    for (int slot = 0; slot < w->gap_ms; slot++)
        for (run **at = &w->due[slot]; *at;) {
            run *q = *at;
            if (q->gateway != gateway) {
                at = &q->next;
                continue;
            }
            *at = q->next;
            free(q);
            w->n_paced--;
        }
}

static void cancel(null_worker *w, const note *n) {
    for (int slot = 0; slot < w->gap_ms; slot++)
        for (run **at = &w->due[slot]; *at; at = &(*at)->next)
            if (strcmp((*at)->id, n->id) == 0 && (*at)->attempt == n->attempt) {
                run *q = *at;
                *at = q->next;
                free(q);
                w->n_paced--;
                return;
            }
}

static void send_now(null_worker *w) {
    err e = {0};
    must(outbox_send(w->out, w->r, drop_gateway, w, &e), &e);
}

// ---- frames

static void add_step(null_worker *w, run *q, int n) {
    arena *a = outbox_arena(w->out);
    reply_token *tokens = arena_alloc(a, (size_t)n * sizeof *tokens);
    char *text = arena_alloc(a, TOKEN_CHARS + 1);
    for (int i = 0; i < n; i++)
        tokens[i] = (reply_token){.id = TOKEN_ID, .logprob = __builtin_nanf("")};
    bench_put_token(text);
    reply_frame *f = outbox_add(w->out, q->gateway, q->id, q->attempt, q->number, 0);
    f->flags = q->made == 0 ? REPLY_PREFILLED : 0;
    f->from = q->made;
    f->tokens = tokens;
    f->n_tokens = n;
    f->text = text;
    f->n_text = TOKEN_CHARS;
    f->engine_us = 1;
    q->made += n;
    if (q->made == q->most) {
        f->flags |= REPLY_LAST;
        f->finish = FINISH_LENGTH;
    }
}

static void step_slot(null_worker *w, int slot) {
    for (run **at = &w->due[slot]; *at;) {
        run *q = *at;
        add_step(w, q, 1);
        if (q->made < q->most) {
            at = &q->next;
            continue;
        }
        *at = q->next;
        free(q);
        w->n_paced--;
    }
}

static void step_paced(null_worker *w) {
    int64_t now = clock_mono_ms();
    if (!w->n_paced || now - w->ticked_ms > w->gap_ms)
        w->ticked_ms = now - 1;
    while (w->ticked_ms < now)
        step_slot(w, (int)(++w->ticked_ms % w->gap_ms));
    send_now(w);
}

// ---- claims

static void take_job(null_worker *w, const queue_claimed *c, run *q) {
    buf sealed = {0};
    arena a;
    job j;
    int found;
    err e = {0};
    arena_init(&a);
    must(queue_take_payload(w->r, w->tier, c->id, c->attempt, &sealed, &found, &e), &e);
    *q = (run){0};
    if (found) {
        must(job_open(sealed.data, sealed.len, c->id, c->attempt, &w->cluster, &a, &j, &e), &e);
        *q = (run){.attempt = c->attempt,
                   .most = j.max_tokens,
                   .number = ++w->n_runs,
                   .gateway = j.gateway};
        memcpy(q->id, c->id, sizeof q->id);
        reply_frame *f = outbox_add(w->out, q->gateway, q->id, q->attempt, q->number, 0);
        f->flags = REPLY_CLAIM;
        f->queue_ms = (int)c->waited_ms;
    }
    arena_release(&a);
    buf_release(&sealed);
}

static void pace(null_worker *w, const run *q) {
    run *kept = malloc(sizeof *kept);
    if (!kept)
        fatal("out of memory for a run");
    run **slot = &w->due[q->number % (uint64_t)w->gap_ms];
    *kept = *q;
    kept->next = *slot;
    *slot = kept;
    w->n_paced++;
}

static void claim(null_worker *w) {
    static const queue_room room = {.max = CLAIM_MOST,
                                    .lanes = {CLAIM_MOST, CLAIM_MOST, CLAIM_MOST, 1}};
    queue_claimed entries[CLAIM_MOST];
    queue_claims got = {.entries = entries};
    run runs[CLAIM_MOST];
    err e = {0};
    must(queue_claim(w->r, w->tier, &room, NULL, 0, &got, &e), &e);
    w->claim_ms = clock_mono_ms() + (got.n == CLAIM_MOST || got.thrown ? 0 : CLAIM_MS);
    for (int i = 0; i < got.n; i++)
        take_job(w, &entries[i], &runs[i]);
    send_now(w); // CLAIM frames leave at once
    for (int i = 0; i < got.n; i++)
        if (runs[i].most > ANSWER_TOKENS)
            pace(w, &runs[i]);
        else if (runs[i].most > 0)
            add_step(w, &runs[i], runs[i].most);
    send_now(w);
}

// ---- the loop

static void serve(null_worker *w) {
    note n;
    while (!inbox_stops(w->in)) {
        while (inbox_take(w->in, &n))
            if (n.kind == NOTE_CANCEL)
                cancel(w, &n);
        if (inbox_rang(w->in) || clock_mono_ms() >= w->claim_ms)
            claim(w);
        step_paced(w);
        int64_t wait = w->n_paced ? 1 : w->claim_ms - clock_mono_ms();
        inbox_wait(w->in, wait < 0 ? 0 : (int)wait);
    }
}

static void block_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv) {
    static null_worker w;
    static config c;
    char secrets[CONFIG_TEXT + 16];
    uint64_t id = id_random_u64() | 1;
    err e = {0};
    if (argc != 4)
        fatal("usage: null_worker CONFIG TIER GAP_MS");
    block_signals();
    must(config_load(&c, argv[1], NULL, 0, &e), &e);
    w.tier = argv[2];
    w.gap_ms = atoi(argv[3]);
    if (w.gap_ms < 1 || w.gap_ms > GAP_MOST)
        fatal("GAP_MS is 1 to %d", GAP_MOST);
    snprintf(secrets, sizeof secrets, "%s/secrets", c.data_dir);
    must(secret_ring_load(secrets, "cluster", false, &w.cluster, &e), &e);
    must(redis_connect(c.redis_address, 5000, &w.r, &e) || queue_prepare(w.r, &e), &e);
    w.in = inbox_new();
    w.out = outbox_new(id);
    listener *ears = listener_start(c.redis_address, w.tier, id, w.in);
    serve(&w);
    listener_stop(ears);
    outbox_free(w.out);
    inbox_free(w.in);
    redis_close(w.r);
    return 0;
}
