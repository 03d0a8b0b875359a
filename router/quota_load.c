// Scopes that Redis does not know are loaded from the ledger (R6). Owns one thread with a
// connection to each; requests enter on their loop (quota_loader_submit) and come back as letters.
// The nonce of the MISS makes a load that is older than a loss fail; the request then asks again.
#include "router/request_internal.h"
#include <stdlib.h>
#include <string.h>

#define REDIS_MS 2000

struct quota_loader {
    const config *c;
    pool *thread; // one
    pg *db;       // the thread's
    redis *cache;
};

typedef struct load {
    quota_loader *w;
    mailbox *to;
    char id[ID_UUID_TEXT];
    usage_meta meta;
    int scope;
    char nonce[40];
    int64_t now_s;
    bool is_loaded;
    err e;
} load;

static void come_back(router *r, void *arg) {
    load *x = arg;
    request *q = r ? request_find(r, x->id) : NULL;
    if (q && q->state == HOLDING) {
        if (x->is_loaded)
            request_hold(q);
        else
            request_refuse_away(q, "the quota cannot be read");
    }
    mailbox_unref(x->to);
    free(x);
}

static int call(load *x, command *c, redis_reply_box **out) {
    quota_loader *w = x->w;
    int rc = -1;
    if (w->cache || !redis_connect(w->c->redis_address, REDIS_MS, &w->cache, &x->e))
        rc = command_call(c, w->cache, out, &x->e);
    if (rc) {
        redis_close(w->cache);
        w->cache = NULL;
    }
    command_release(c);
    return rc;
}

// Many that missed the same scope wait here; the first one's load is enough. 1: it is still wanted.
static int is_wanted(load *x) {
    char name[96];
    command c = {0};
    redis_reply_box *box = NULL;
    size_t n;
    usage_scope_name(&x->meta, x->meta.scopes[x->scope], name, sizeof name);
    command_text(&c, "GET");
    command_printf(&c, "tg:{%s}:s:%s", x->meta.tenant, name);
    if (call(x, &c, &box))
        return -1;
    const char *v = redis_value_str(redis_reply_value(box), &n);
    bool yes = v && n == strlen(x->nonce) + 1 && v[0] == '?' && !memcmp(v + 1, x->nonce, n - 1);
    redis_reply_free(box);
    return yes;
}

static int write_counters(load *x, const quota_counters *counters) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_load_command(&x->meta, x->scope, x->nonce, counters, &c);
    int rc = call(x, &c, &box);
    redis_reply_free(box); // OK or LATE: either way hold is asked again
    return rc;
}

static int load_counters(load *x) {
    quota_loader *w = x->w;
    quota_counters counters;
    if ((!w->db && pg_connect(w->c->postgres_url, &w->db, &x->e)) ||
        quota_read_ledger(w->db, &x->meta, x->scope, x->now_s, &counters, &x->e))
        return -1;
    return write_counters(x, &counters);
}

static void run_load(void *ctx) {
    load *x = ctx;
    int wanted = is_wanted(x);
    x->is_loaded = wanted == 0 || (wanted > 0 && !load_counters(x));
    mailbox_post(x->to, come_back, x);
}

void quota_loader_submit(quota_loader *w, request *q, const quota_answer *miss) {
    load *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory for a quota");
    *x = (load){.w = w,
                .to = mailbox_ref(q->r->slot->box),
                .meta = *q->meta,
                .scope = miss->scope,
                .now_s = miss->now_s};
    memcpy(x->id, q->id, sizeof x->id);
    memcpy(x->nonce, miss->nonce, sizeof x->nonce);
    if (pool_submit(w->thread, run_load, x)) { // too many wait
        request_refuse_away(q, "the quota cannot be read");
        mailbox_unref(x->to);
        free(x);
    }
}

quota_loader *quota_loader_open(const config *c) {
    quota_loader *w = calloc(1, sizeof *w);
    if (!w)
        fatal("out of memory for the quota");
    w->c = c;
    w->thread = pool_new("quota", 1);
    return w;
}

void quota_loader_close(quota_loader *w) {
    if (!w)
        return;
    pool_free(w->thread);
    redis_close(w->cache);
    pg_close(w->db);
    free(w);
}
