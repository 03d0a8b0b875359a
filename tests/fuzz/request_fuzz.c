// libFuzzer target: JSON body -> openai_request, for all four kinds of bodies. The first byte
// chooses the kind. Whatever comes in: no crash, an error names itself, and what is accepted keeps
// to its limits.
#include "server/openai_error.h"
#include "server/openai_request.h"
#include "server/openai_text.h"
#include <stdlib.h>
#include <string.h>

static const openai_limits limits = {
    .body_bytes = 1 << 20, .json_depth = 16, .max_messages = 8, .max_choices = 8};

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static void check_error(const err *e) {
    openai_error told = openai_error_of(e);
    buf body = {0};
    MUST(told.status == 400 && e->message[0]);
    openai_error_body(e, &body);
    json_t *v = json_loadb(body.data, body.len, JSON_REJECT_DUPLICATES, NULL);
    MUST(json_object_size(json_object_get(v, "error")) == 4);
    json_decref(v);
    buf_release(&body);
}

static void check_accepted(const openai_request *q) {
    const sampling_params *s = &q->sampling;
    MUST(q->model.s && q->model.n && text_is_utf8(q->model.s, q->model.n));
    MUST(q->messages ? q->n_messages > 0 && q->n_messages <= 8 : q->n_prompts > 0);
    MUST(q->n_stops >= 0 && q->n_stops <= JOB_STOPS);
    if (q->kind != OPENAI_CHAT && q->kind != OPENAI_COMPLETION)
        return;
    MUST(q->n_choices >= 1 && q->n_choices * (q->n_prompts ? q->n_prompts : 1) <= 8);
    MUST(q->max_tokens >= 0 && s->n_bias >= 0 && s->n_bias <= SAMPLING_MAX_BIAS);
    MUST(s->temperature >= 0 && s->temperature <= 2 && s->top_p > 0 && s->top_p <= 1);
    MUST(s->min_p >= 0 && s->min_p < 1 && s->top_k >= 0 && s->repetition_penalty > 0);
    MUST(s->n_top_logprobs >= -1 && s->n_top_logprobs <= 20);
    for (size_t i = 0; i < q->n_messages; i++)
        MUST(q->messages[i].content && strlen(q->messages[i].content) == q->messages[i].n_content &&
             text_is_utf8(q->messages[i].content, q->messages[i].n_content));
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    if (n == 0)
        return 0;
    arena a;
    openai_request q;
    err e = {0};
    arena_init(&a);
    openai_kind kind = (openai_kind)(p[0] & 3);
    if (openai_request_parse(kind, (const char *)p + 1, n - 1, &limits, &a, &q, &e))
        check_error(&e);
    else
        check_accepted(&q);
    openai_request_release(&q);
    arena_release(&a);
    return 0;
}
