// Quota in a request's life: the hold before anything else, and extensions while it runs. The
// router's loop. Decides nothing: router/quota.lua does, in one step for all scopes.
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/money.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HOLDS_MOST 8 // a scope per MISS, and once more when the library was missing
#define LOST_MS 1000
#define NAMED_MS 1000 // so long a tenant is not named again

// ---- what is asked for

static quota_demand demand_of(const request *q) {
    const request_spec *s = q->spec;
    int room = s->model->max_context - s->n_prompt;
    int usual = (int)q->r->s->c->default_max_tokens;
    bool is_implicit = s->max_tokens <= 0;
    int want = is_implicit ? (usual < room ? usual : room) : s->max_tokens;
    return (quota_demand){.prompt = s->n_prompt,
                          .want = want,
                          .need = is_implicit || s->allow_truncate ? 1 : want,
                          .n_choices = s->n_choices};
}

// An absent max_tokens may grow to what the model has room for.
static int most_of(const request *q) {
    const request_spec *s = q->spec;
    return s->max_tokens > 0 ? s->max_tokens : s->model->max_context - s->n_prompt;
}

// ---- answers to hold

static void on_released(void *ctx, const redis_value *v) {
    request *q = ctx;
    router *r = q->r;
    if (redis_value_kind(v) == REDIS_ARRAY ||
        r->is_closing) { // else a sweep will, or the next tick
        request_unref(q);
        return;
    }
    q->next_unreleased = r->unreleased;
    r->unreleased = q;
}

static void send_release(request *q) { // takes over a reference
    router *r = q->r;
    quota_release_command(q->meta, q->id, &r->c);
    command_send(&r->c, r->calls, on_released, q);
}

static void release_hold(request *q) {
    request_ref(q);
    send_release(q);
}

void router_release_holds(router *r) {
    request *q = r->unreleased;
    if (!aredis_connected(r->calls))
        return;
    r->unreleased = NULL;
    for (request *next; q; q = next) {
        next = q->next_unreleased;
        send_release(q);
    }
}

void router_let_go_unreleased(router *r) {
    for (request *q = r->unreleased, *next; q; q = next) {
        next = q->next_unreleased;
        request_unref(q);
    }
    r->unreleased = NULL;
}

static void refuse(request *q, request_outcome why, err_code code, int64_t retry_ms,
                   const char *message) {
    err e = {0};
    err_set(&e, code, NULL, "%s", message);
    e.retry_ms = retry_ms > 0 && retry_ms < 86400000 ? (int)retry_ms : 0;
    request_refuse(q, why, &e);
}

void request_refuse_away(request *q, const char *message) {
    refuse(q, OUTCOME_FAILED, ERR_DEPENDENCY, LOST_MS, message);
}

static void put_amount(const char *kind, int64_t v, char out[MONEY_TEXT]) {
    if (strcmp(kind, "mpo") == 0)
        money_format(v, out);
    else
        snprintf(out, MONEY_TEXT, "%lld", (long long)v);
}

// When there is room again at the latest, as far as a clock can tell: " The window ends ...".
static void put_reset(const quota_answer *a, char *out, size_t n) {
    bool is_day = strcmp(a->kind, "tpd") == 0, is_month = strcmp(a->kind + 1, "po") == 0;
    struct tm t;
    time_t now = (time_t)(clock_unix_ms() / 1000);
    *out = '\0';
    if (is_day || is_month) {
        gmtime_r(&now, &t);
        struct tm end = {.tm_year = t.tm_year,
                         .tm_mon = t.tm_mon + is_month,
                         .tm_mday = is_day ? t.tm_mday + 1 : 1};
        timegm(&end); // carries into months and years
        strftime(out, n, " The window ends at %Y-%m-%d 00:00 UTC.", &end);
    } else if (a->retry_ms > 0 && strcmp(a->kind, "conc") != 0) {
        snprintf(out, n, " The window ends in %lld s.", (long long)(a->retry_ms + 999) / 1000);
    }
}

// "tokens per minute of your user: limit 20000, used or held 19990, this request needs 35. The
// window ends in 12 s."
static void refuse_by_limit(request *q, const quota_answer *a) {
    static const struct {
        char letter;
        const char *words;
    } scopes[] = {{'t', "tenant"}, {'u', "user"}, {'k', "key"}, {'m', "tenant for this model"}};
    char message[256], limit[MONEY_TEXT], used[MONEY_TEXT], needs[MONEY_TEXT], reset[64];
    const char *whose = "tenant";
    for (size_t i = 0; i < sizeof scopes / sizeof *scopes; i++)
        if (q->meta->scopes[a->scope] == scopes[i].letter)
            whose = scopes[i].words;
    put_amount(a->kind, a->limit, limit);
    put_amount(a->kind, a->used, used);
    put_amount(a->kind, a->demand, needs);
    put_reset(a, reset, sizeof reset);
    snprintf(message, sizeof message,
             "Limit reached: %s of your %s: limit %s, used or held %s, this request needs %s.%s",
             quota_kind_words(a->kind), whose, limit, used, needs, reset);
    refuse(q, OUTCOME_OVERLOADED, a->retry_ms >= 0 ? ERR_RATE : ERR_QUOTA, a->retry_ms, message);
}

// It was cancelled, or its deadline came, while hold was under way.
static void refuse_ended(request *q) {
    err e = {0};
    request_describe(q->outcome, &e);
    request_refuse(q, q->outcome, &e);
}

// ---- line A on the disk

static void wait_durable(request *q) {
    router *r = q->r;
    request_ref(q);
    if (r->undurable_last)
        r->undurable_last->next_undurable = q;
    else
        r->undurable = q;
    r->undurable_last = q;
    journal_want(r->s->j, r->watch, q->mark.end);
}

static request *take_undurable(router *r) {
    request *q = r->undurable;
    r->undurable = q->next_undurable;
    if (!r->undurable)
        r->undurable_last = NULL;
    q->next_undurable = NULL;
    return q;
}

static void become_durable(request *q, bool has_failed) {
    q->is_durable = true; // or never will be: then it ends with an error
    if (has_failed && request_is_open(q)) {
        err e = {0};
        err_set(&e, ERR_IO, NULL, "the journal's disk has failed");
        request_close(q, OUTCOME_FAILED, &e);
    }
    request_take_kept(q);
    request_tell_if_due(q);
}

void router_take_durable(router *r, void *arg) {
    (void)arg;
    if (!r)
        return;
    uint64_t upto = journal_durable(r->s->j);
    bool has_failed = journal_has_failed(r->s->j);
    while (r->undurable && (has_failed || r->undurable->mark.end <= upto)) {
        request *q = take_undurable(r);
        become_durable(q, q->mark.end > upto);
        request_unref(q);
    }
    if (r->undurable)
        journal_want(r->s->j, r->watch, r->undurable->mark.end);
}

void router_let_go_undurable(router *r) {
    while (r->undurable)
        request_unref(take_undurable(r));
}

// ---- answers to hold, continued

static void accept(request *q, int granted, const char *bound) {
    router *r = q->r;
    err e = {0};
    q->granted = granted;
    q->most = most_of(q);
    if (q->most < granted || (q->spec->max_tokens > 0 && granted < q->spec->max_tokens)) {
        q->most = granted; // shortened: no extension
        snprintf(q->limited_by, sizeof q->limited_by, "%s", bound);
    }
    if (journal_accept(r->s->j, q->id, q->meta, &q->mark, &e)) {
        release_hold(q);
        request_refuse(q, OUTCOME_FAILED, &e);
        return;
    }
    q->entry->segment = q->mark.segment;
    failpoint("accept.after"); // A
    wait_durable(q);
    request_move(q, QUEUED);
    q->place.attempt = 1;
    request_enqueue(q, NULL);
}

static tenant_slot *tenant_slot_of(const request *q) {
    const char *random = q->meta->tenant + ID_UUID_TEXT - 3; // the last digits of a UUIDv7
    return &q->r->tenants[(unsigned)(random[0] * 31 + random[1]) % TENANT_SLOTS];
}

static bool is_named(const request *q) {
    const tenant_slot *t = tenant_slot_of(q);
    return clock_mono_ms() < t->until_ms && strcmp(t->tenant, q->meta->tenant) == 0;
}

// The hold succeeded, and with it what was sent before it.
static void note_named(const request *q) {
    tenant_slot *t = tenant_slot_of(q);
    if (is_named(q))
        return; // named again once a second, in case a failover lost it
    memcpy(t->tenant, q->meta->tenant, sizeof t->tenant);
    t->until_ms = clock_mono_ms() + NAMED_MS;
}

static void on_hold(void *ctx, const redis_value *v) {
    request *q = ctx;
    quota_answer a;
    quota_read_answer(v, &a);
    q->rates = a.rates;
    if (q->state != HOLDING || q->r->is_closing)
        goto done;
    if (q->outcome != OUTCOME_OK) {
        if (a.verdict == QUOTA_OK || a.verdict == QUOTA_LOST)
            release_hold(q);
        refuse_ended(q);
        goto done;
    }
    switch (a.verdict) {
    case QUOTA_OK:
        note_named(q);
        failpoint("hold.after"); // B
        accept(q, a.granted, a.kind);
        break;
    case QUOTA_NO:
        refuse_by_limit(q, &a);
        break;
    case QUOTA_OPEN:
        refuse(q, OUTCOME_OVERLOADED, ERR_IN_PROGRESS, 1000,
               "A request with this Idempotency-Key is running.");
        break;
    case QUOTA_OTHER:
        refuse(q, OUTCOME_FAILED, ERR_IDEM_MISMATCH, 0,
               "This Idempotency-Key was used with another request.");
        break;
    case QUOTA_DONE:
        request_replay(q, a.answer, a.n_answer);
        break;
    case QUOTA_POISON:
        refuse(q, OUTCOME_DEAD_LETTER, ERR_POISON, 0,
               "This request stopped the workers that ran it; it is refused for some minutes.");
        break;
    case QUOTA_NO_CALL:
        lease_load_libraries(q->r);
        request_hold(q);
        break;
    case QUOTA_MISS:
        quota_loader_submit(q->r->s->loader, q, &a);
        break;
    default: // it may have been made all the same
        release_hold(q);
        request_refuse_away(q, "the queue cannot be reached");
    }
done:
    request_unref(q);
}

// The sweep finds records by their tenants.
static void name_tenant(request *q) {
    router *r = q->r;
    if (is_named(q))
        return;
    command_words(&r->c, 3, (const char *const[]){"SADD", "tg:tenants", q->meta->tenant});
    command_send(&r->c, r->calls, NULL, NULL);
}

void request_hold(request *q) {
    router *r = q->r;
    quota_demand d = demand_of(q);
    if (++q->n_holds > HOLDS_MOST) {
        request_refuse_away(q, "the quota cannot be read");
        return;
    }
    name_tenant(q);
    quota_hold_command(q->meta, q->id, r->gateway, q->spec->body_hash, &d, q->limits, &r->c);
    request_ref(q);
    command_send(&r->c, r->calls, on_hold, q);
}

// ---- extensions

static void on_extend(void *ctx, const redis_value *v) {
    request *q = ctx;
    quota_answer a;
    err e = {0};
    quota_read_answer(v, &a);
    q->is_extending = false;
    if (!request_is_open(q))
        goto done;
    switch (a.verdict) {
    case QUOTA_OK:
        q->granted = a.granted < q->most ? a.granted : q->most;
        break;
    case QUOTA_NO: // what is granted is handed, then it ends
        q->most = q->granted;
        snprintf(q->limited_by, sizeof q->limited_by, "%s", a.kind);
        break;
    case QUOTA_GONE: // R7
        err_set(&e, ERR_DEPENDENCY, NULL, "the request's hold is gone");
        request_close(q, OUTCOME_FAILED, &e);
        goto done;
    default: // not answered: the tick asks again; the old grant is named, so it counts once
        goto done;
    }
    request_take_kept(q);
done:
    request_unref(q);
}

void request_extend(request *q) {
    router *r = q->r;
    if (q->is_extending || q->granted >= q->most)
        return;
    int slice = q->most - q->granted < SLICE ? q->most - q->granted : SLICE;
    q->is_extending = true;
    limits_refresh(r->s->limits, q->meta, q->limits); // one that was lowered holds from here on
    quota_extend_command(q->meta, q->id, q->granted, slice, q->spec->n_choices, q->limits, &r->c);
    request_ref(q);
    command_send(&r->c, r->calls, on_extend, q);
}
