// POST /v1/chat/completions and /v1/completions, up to the router: headers, body, model, prompt
// tokens, one request of the router per prompt. Large bodies are parsed and long prompts tokenised
// on the pool. What happens from the first frame on is openai_generate_told.c.
#include "server/openai_generate.h"
#include "server/openai_handlers.h"
#include "base/failpoint.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGE_BODY 65536
#define LONG_PROMPT 4096
#define SESSION_MOST 128
#define MAX_DEADLINE_MS 86400000 // a day

// ---- headers

static int read_deadline(const exchange *x, generation *g, err *e) {
    const char *text = exchange_header(x, "x-tiergate-deadline-ms");
    if (!text)
        return 0;
    bool is_number = *text && strlen(text) <= 8 && strspn(text, "0123456789") == strlen(text);
    g->deadline_ms = is_number ? strtol(text, NULL, 10) : 0;
    if (g->deadline_ms < 1 || g->deadline_ms > MAX_DEADLINE_MS)
        return err_set(e, ERR_INVALID, "x-tiergate-deadline-ms",
                       "'x-tiergate-deadline-ms' must be a number between 1 and %d.",
                       MAX_DEADLINE_MS);
    return 0;
}

static int read_truncate(const exchange *x, generation *g, err *e) {
    const char *text = exchange_header(x, "x-tiergate-allow-truncate");
    if (!text)
        return 0;
    g->allow_truncate = strcmp(text, "1") == 0;
    if (!g->allow_truncate && strcmp(text, "0") != 0)
        return err_set(e, ERR_INVALID, "x-tiergate-allow-truncate",
                       "'x-tiergate-allow-truncate' must be 0 or 1.");
    return 0;
}

static int read_session(const exchange *x, generation *g, err *e) {
    const char *text = g->session = exchange_header(x, "x-tiergate-session");
    size_t n = text ? strlen(text) : 0, printable = 0;
    while (printable < n && text[printable] >= 0x21 && text[printable] <= 0x7e)
        printable++;
    if (text && (n < 1 || n > SESSION_MOST || printable < n))
        return err_set(e, ERR_INVALID, "x-tiergate-session",
                       "'x-tiergate-session' must be 1 to %d printable ASCII characters without "
                       "spaces.",
                       SESSION_MOST);
    return 0;
}

static int read_task(const exchange *x, generation *g, err *e) {
    static const char *const tasks[] = {"completion", "chat",  "test", "comment",
                                        "review",     "agent", "long"};
    const char *text = exchange_header(x, "x-tiergate-task");
    if (!text)
        text = g->q.kind == OPENAI_CHAT ? "chat" : "completion";
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (strcmp(text, tasks[i]) == 0) {
            g->task = tasks[i];
            g->lane = i == 0 ? LANE_COMPLETION : LANE_INTERACTIVE;
            return 0;
        }
    return err_set(e, ERR_INVALID, "x-tiergate-task",
                   "'x-tiergate-task' must be completion, chat, test, comment, review, agent or "
                   "long, not \"%.40s\".",
                   text);
}

// ---- body and prompts; any thread

static void parse(call *c) {
    generation *g = c->user;
    size_t n;
    const char *body = exchange_body(c->x, &n);
    err *e = &g->failed;
    idempotency_hash_body(c->x, g->body_hash);
    if (openai_request_parse(g->q.kind, body, n, &c->limits, exchange_arena(c->x), &g->q, e) == 0)
        assign_find(c->seat->assign, c->who.tenant, g->q.model.s, &g->target, e);
}

// What must outlive the JSON tree.
static void keep_texts(generation *g, arena *a) {
    for (int i = 0; i < g->q.n_stops; i++)
        g->q.stops[i].text = arena_dup(a, g->q.stops[i].text, g->q.stops[i].n);
    for (int i = 0; g->q.echo && i < g->n_parts; i++) {
        const openai_prompt *p = &g->q.prompts[i];
        part *to = &g->parts[i];
        buf text = {0};
        if (p->ids)
            openai_prompt_text(model_tokenizer(g->target.model->model), p->ids, (size_t)p->n_ids,
                               &text);
        to->n_echo = p->ids ? text.len : p->text.n;
        to->echo = arena_dup(a, p->ids ? text.data : p->text.s, to->n_echo);
        buf_release(&text);
    }
}

static void encode(call *c) {
    failpoint("encode.before");
    generation *g = c->user;
    arena *a = exchange_arena(c->x);
    int n = openai_prompt_count(&g->q);
    token_list *ids = arena_alloc(a, (size_t)n * sizeof *ids);
    g->n_parts = n;
    g->parts = arena_alloc(a, (size_t)n * sizeof *g->parts);
    g->is_fim = g->q.suffix.s != NULL;
    openai_prompt_encode(&g->q, g->target.model, a, ids, &g->failed);
    for (int i = 0; i < n; i++)
        g->parts[i] = (part){.g = g, .index = i, .prompt = ids[i], .n_prompt = (int)ids[i].n};
    keep_texts(g, a);
    openai_request_release(&g->q);
}

static void parse_and_encode(call *c) {
    generation *g = c->user;
    parse(c);
    if (!g->failed.code)
        encode(c);
}

// ---- to the router

static void fill_spec(const generation *g, const part *p, request_spec *s) {
    const call *c = g->c;
    *s = (request_spec){
        .weight = c->who.weight,
        .model = g->target.model,
        .lane = g->lane,
        .endpoint = g->q.kind == OPENAI_CHAT ? "chat" : "completions",
        .task = g->task,
        .route = g->route,
        .prompt = p->prompt.ids,
        .n_prompt = p->n_prompt,
        .n_choices = g->q.n_choices,
        .max_tokens = g->q.max_tokens,
        .allow_truncate = g->allow_truncate,
        .streamed = g->q.stream,
        .sampling = g->q.sampling,
        .n_stops = g->q.n_stops,
        .ignore_end = g->q.ignore_eos,
        .fim = g->is_fim,
        .echo_logprobs = g->q.echo && g->q.has_logprobs,
        .deadline_ms = g->deadline_ms,
        .session = g->session,
    };
    snprintf(s->id, sizeof s->id, "%s", p->index ? "" : exchange_id(c->x));
    snprintf(s->tenant, sizeof s->tenant, "%s", c->who.tenant);
    snprintf(s->user, sizeof s->user, "%s", c->who.user);
    snprintf(s->key, sizeof s->key, "%s", c->who.key);
    snprintf(s->adapter, sizeof s->adapter, "%s", g->target.adapter);
    memcpy(s->stops, g->q.stops, sizeof s->stops);
    memcpy(s->idem, g->idem, sizeof s->idem);
    memcpy(s->body_hash, g->body_hash, sizeof s->body_hash);
}

static int submit_part(generation *g, part *p) {
    request_spec spec;
    fill_spec(g, p, &spec);
    int failed =
        router_submit(g->c->seat->router, &spec, &generation_events, p, &p->request, &g->failed);
    token_list_release(&p->prompt);
    p->has_ended = failed != 0;
    g->n_open += !failed;
    return failed;
}

// A header's value, and the ledger's: printable ASCII only.
static void explain_route(generation *g) {
    const config_model *m = g->target.model->config;
    bool is_own = strcmp(g->target.name, m->name) == 0;
    snprintf(g->route, sizeof g->route, "tier=%s; why=%s%s", m->tier,
             is_own ? "model id" : "alias ", is_own ? "" : g->target.name);
    for (char *p = g->route; *p; p++)
        if (*p < 0x20 || *p > 0x7e)
            *p = '?';
    exchange_set_header(g->c->x, "x-tiergate-route", g->route);
}

static void submit(generation *g) {
    explain_route(g);
    generation_open(g);
    for (int i = 0; i < g->n_parts; i++)
        g->parts[i].has_ended = true; // until it is submitted
    for (int i = 0; i < g->n_parts && !g->failed.code; i++)
        submit_part(g, &g->parts[i]);
    if (g->failed.code && g->n_open)
        generation_cancel(g, OUTCOME_FAILED);
    if (g->n_open == 0)
        generation_close_soon(g);
}

static void release_prompts(generation *g) {
    openai_request_release(&g->q);
    for (int i = 0; i < g->n_parts; i++)
        token_list_release(&g->parts[i].prompt);
}

// Each stands for one request of the router.
static void check_single(generation *g) {
    const char *name = g->idem[0] ? "idempotency-key" : g->session ? "x-tiergate-session" : NULL;
    if (name && g->n_parts > 1)
        err_set(&g->failed, ERR_UNSUPPORTED, name,
                "'%s' is not supported for several prompts in one request.", name);
}

static void prepared(call *c) {
    generation *g = c->user;
    if (!g->failed.code)
        check_single(g);
    if (!g->failed.code)
        call_check_revoked(c, &g->failed);
    if (g->target.model)
        c->record.model = g->target.model->config->name;
    if (c->is_gone || g->failed.code) {
        release_prompts(g);
        if (c->is_gone)
            call_abandon(c);
        else
            call_fail(c, &g->failed);
        return;
    }
    submit(g);
}

static void parsed(call *c) {
    generation *g = c->user;
    if (g->failed.code || g->q.text_bytes <= LONG_PROMPT) {
        if (!g->failed.code)
            encode(c);
        prepared(c);
    } else if (call_run(c, encode, prepared, &g->failed)) {
        prepared(c);
    }
}

static void start(call *c, openai_kind kind) {
    generation *g = arena_alloc(exchange_arena(c->x), sizeof *g);
    size_t n;
    g->c = c;
    g->q.kind = kind;
    c->user = g;
    exchange_body(c->x, &n);
    if (read_deadline(c->x, g, &g->failed) || read_truncate(c->x, g, &g->failed) ||
        read_task(c->x, g, &g->failed) || read_session(c->x, g, &g->failed) ||
        idempotency_read(c->x, g->idem, &g->failed)) {
        call_fail(c, &g->failed);
    } else if (n <= LARGE_BODY) {
        parse(c);
        parsed(c);
    } else if (call_run(c, parse_and_encode, prepared, &g->failed)) {
        call_fail(c, &g->failed);
    }
}

void handle_chat(call *c) { start(c, OPENAI_CHAT); }
void handle_completions(call *c) { start(c, OPENAI_COMPLETION); }
