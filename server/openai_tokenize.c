// POST /v1/tokenize and /v1/detokenize, in vLLM's shapes: exactly the ids that a completion or a
// chat of the same prompt would be billed for. Starts on the reactor; long texts go to the pool.
#include "server/openai_call.h"
#include "server/openai_handlers.h"
#include "server/openai_prompt.h"
#include "server/openai_text.h"

#define SMALL_BODY 4096 // tokenised at once

typedef struct task {
    openai_kind kind;
    err failed;
    buf answer;
} task;

static void put_strings(const tokenizer *t, const token_list *l, buf *out) {
    for (size_t i = 0; i < l->n; i++) {
        size_t n;
        const char *piece = tokenizer_piece(t, l->ids[i], true, &n);
        buf_puts(out, i ? "," : "");
        text_put_json(out, piece, n);
    }
}

static void put_tokens(const openai_request *q, const catalogue_entry *m, const token_list *l,
                       buf *out) {
    buf_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":[", l->n, m->max_context);
    for (size_t i = 0; i < l->n; i++)
        buf_printf(out, i ? ",%d" : "%d", l->ids[i]);
    buf_puts(out, "],\"token_strs\":");
    if (q->return_token_strs) {
        buf_puts(out, "[");
        put_strings(model_tokenizer(m->model), l, out);
        buf_puts(out, "]}");
    } else {
        buf_puts(out, "null}");
    }
}

// The text that the ids of a detokenize request spell.
static void put_prompt(const catalogue_entry *m, const token_list *l, buf *out) {
    buf text = {0};
    openai_prompt_text(model_tokenizer(m->model), l->ids, l->n, &text);
    buf_puts(out, "{\"prompt\":");
    text_put_json(out, text.len ? text.data : "", text.len);
    buf_puts(out, "}");
    buf_release(&text);
}

static int answer(call *c, task *t, openai_request *q, token_list *ids, err *e) {
    size_t n;
    const char *body = exchange_body(c->x, &n);
    arena *a = exchange_arena(c->x);
    assign_target target;
    if (openai_request_parse(t->kind, body, n, &c->limits, a, q, e) ||
        assign_find(c->seat->assign, c->who.tenant, q->model.s, &target, e) ||
        openai_prompt_encode(q, target.model, a, ids, e))
        return -1;
    if (t->kind == OPENAI_TOKENIZE)
        put_tokens(q, target.model, ids, &t->answer);
    else
        put_prompt(target.model, ids, &t->answer);
    return 0;
}

static void run(call *c) {
    task *t = c->user;
    openai_request q = {0};
    token_list ids = {0};
    answer(c, t, &q, &ids, &t->failed);
    token_list_release(&ids);
    openai_request_release(&q);
}

static void told(call *c) {
    task *t = c->user;
    buf body = t->answer;
    if (c->is_gone)
        call_abandon(c);
    else if (t->failed.code)
        call_fail(c, &t->failed);
    else
        call_reply(c, 200, &body);
    buf_release(&body);
}

static void start(call *c, openai_kind kind) {
    task *t = arena_alloc(exchange_arena(c->x), sizeof *t);
    err e = {0};
    size_t n;
    t->kind = kind;
    c->user = t;
    exchange_body(c->x, &n);
    if (n > SMALL_BODY) {
        if (call_run(c, run, told, &e))
            call_fail(c, &e);
        return;
    }
    run(c);
    told(c);
}

void handle_tokenize(call *c) { start(c, OPENAI_TOKENIZE); }
void handle_detokenize(call *c) { start(c, OPENAI_DETOKENIZE); }
