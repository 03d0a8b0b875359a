// Builds answers. What is the same in every event of a stream (id, model, ...) is spelt once, in
// head and tail: 4,000 streams of 20 tokens/s share one core. Owns its buffers; belongs to one
// exchange and its reactor's thread. Does not know sockets or the router.
#include "server/openai_answer.h"
#include "server/openai_error.h"
#include "server/openai_logprob.h"
#include <stdlib.h>
#include <string.h>

typedef struct answer_prompt {
    buf echo;
    bool has_echo;
    logprob_lists logprobs; // PROMPT frames
} answer_prompt;

typedef struct answer_choice {
    bool is_begun; // role or echo was told
    int n_tokens;
    buf text;             // body only
    buf logprobs;         // chat: entries since the last event, or all (body)
    logprob_lists legacy; // completions: the same
} answer_choice;

struct answer {
    answer_options o;
    buf meta; // "id" to "system_fingerprint", with a comma behind it
    buf head; // of an event, up to the choice's index
    answer_prompt *prompts;
    answer_choice *choices;
    int n_choices; // all
};

#define PUT(out, literal) buf_put(out, literal, sizeof literal - 1)

static void put_text(buf *out, const char *p, size_t n) { buf_put_json(out, n ? p : "", n); }

static void put_member(buf *out, const char *name, const char *value) {
    buf_printf(out, "\"%s\":", name);
    buf_put_json(out, value, strlen(value));
    PUT(out, ",");
}

static void put_meta(answer *a, const char *object, buf *out) {
    buf_printf(out, "\"id\":\"%s-%s\",", a->o.is_chat ? "chatcmpl" : "cmpl", a->o.id);
    put_member(out, "object", object);
    buf_printf(out, "\"created\":%lld,", (long long)a->o.created);
    put_member(out, "model", a->o.model);
    put_member(out, "system_fingerprint", a->o.fingerprint);
    if (a->o.has_tier)
        put_member(out, "service_tier", "default");
}

answer *answer_new(const answer_options *o) {
    answer *a = calloc(1, sizeof *a);
    if (!a)
        fatal("out of memory for an answer");
    a->o = *o;
    a->n_choices = o->n_prompts * o->n_choices;
    a->prompts = calloc((size_t)o->n_prompts, sizeof *a->prompts);
    a->choices = calloc((size_t)a->n_choices, sizeof *a->choices);
    if (!a->prompts || !a->choices)
        fatal("out of memory for an answer of %d choices", a->n_choices);
    PUT(&a->head, "data: {");
    put_meta(a, o->is_chat ? "chat.completion.chunk" : "text_completion", &a->head);
    PUT(&a->head, "\"choices\":[");
    PUT(&a->meta, "{");
    put_meta(a, o->is_chat ? "chat.completion" : "text_completion", &a->meta);
    a->o.id = a->o.model = a->o.fingerprint = NULL; // spelt; not ours to keep
    return a;
}

void answer_free(answer *a) {
    if (!a)
        return;
    for (int i = 0; i < a->o.n_prompts; i++) {
        buf_release(&a->prompts[i].echo);
        logprob_lists_release(&a->prompts[i].logprobs);
    }
    for (int i = 0; i < a->n_choices; i++) {
        buf_release(&a->choices[i].text);
        buf_release(&a->choices[i].logprobs);
        logprob_lists_release(&a->choices[i].legacy);
    }
    free(a->prompts);
    free(a->choices);
    buf_release(&a->meta);
    buf_release(&a->head);
    free(a);
}

// ---- taking frames in

static answer_prompt *prompt_of(const answer *a, int choice) {
    return &a->prompts[choice / a->o.n_choices];
}

void answer_echo(answer *a, int prompt, const char *text, size_t n) {
    buf_put(&a->prompts[prompt].echo, text, n);
    a->prompts[prompt].has_echo = true;
}

void answer_take_prompt(answer *a, int prompt, const reply_frame *f) {
    logprob_lists *l = &a->prompts[prompt].logprobs;
    for (int i = 0; i < f->n_tokens; i++)
        if (f->from + i == l->n)
            logprob_lists_put(l, a->o.tokenizer, &f->tokens[i]);
}

int answer_prompt_taken(const answer *a, int prompt) { return a->prompts[prompt].logprobs.n; }

static void begin_choice(answer *a, int choice) {
    answer_choice *c = &a->choices[choice];
    c->is_begun = true;
    if (prompt_of(a, choice)->has_echo)
        c->legacy.n_characters = prompt_of(a, choice)->logprobs.n_characters;
}

static void take_logprobs(answer *a, answer_choice *c, const reply_frame *f) {
    for (int i = 0; i < f->n_tokens; i++)
        if (a->o.is_chat)
            logprob_put_chat(a->o.tokenizer, &f->tokens[i], &c->logprobs);
        else
            logprob_lists_put(&c->legacy, a->o.tokenizer, &f->tokens[i]);
}

// ---- events

static void put_index(buf *out, int i) {
    if (i < 10)
        buf_put(out, (char[]){(char)('0' + i)}, 1);
    else
        buf_printf(out, "%d", i);
}

static void put_event_head(const answer *a, int choice, buf *out) {
    buf_put(out, a->head.data, a->head.len);
    PUT(out, "{\"index\":");
    put_index(out, choice);
}

static void put_event_tail(const answer *a, const char *limited_by, buf *out) {
    PUT(out, "]");
    if (limited_by) {
        PUT(out, ",\"metadata\":{\"x-tiergate-limited-by\":");
        buf_put_json(out, limited_by, strlen(limited_by));
        PUT(out, "}");
    }
    if (a->o.has_usage)
        PUT(out, ",\"usage\":null}\n\n");
    else
        PUT(out, "}\n\n");
}

static void put_chat_logprobs(const answer_choice *c, buf *out) {
    PUT(out, "{\"content\":[");
    if (c->logprobs.len)
        buf_put(out, c->logprobs.data, c->logprobs.len);
    PUT(out, "],\"refusal\":null}");
}

// The role of a chat, the prompt of an echo.
static void put_first_event(answer *a, int choice, buf *out) {
    const answer_prompt *p = prompt_of(a, choice);
    begin_choice(a, choice);
    if (!a->o.is_chat && !p->has_echo)
        return;
    put_event_head(a, choice, out);
    if (a->o.is_chat) {
        PUT(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}"
                 ",\"logprobs\":null");
    } else {
        PUT(out, ",\"text\":");
        put_text(out, p->echo.data, p->echo.len);
        PUT(out, ",\"logprobs\":");
        if (p->logprobs.n)
            logprob_lists_write(&p->logprobs, NULL, out);
        else
            PUT(out, "null");
    }
    PUT(out, ",\"finish_reason\":null}");
    put_event_tail(a, NULL, out);
}

static void put_text_event(answer *a, int choice, const reply_frame *f, buf *out) {
    answer_choice *c = &a->choices[choice];
    put_event_head(a, choice, out);
    if (a->o.is_chat)
        PUT(out, ",\"delta\":{\"content\":");
    else
        PUT(out, ",\"text\":");
    put_text(out, f->text, f->n_text);
    if (a->o.is_chat)
        PUT(out, "}");
    PUT(out, ",\"logprobs\":");
    if (!a->o.has_logprobs || !f->n_tokens) {
        PUT(out, "null");
    } else if (a->o.is_chat) {
        put_chat_logprobs(c, out);
        buf_clear(&c->logprobs);
    } else {
        logprob_lists_write(&c->legacy, NULL, out);
        logprob_lists_clear(&c->legacy);
    }
    PUT(out, ",\"finish_reason\":null}");
    put_event_tail(a, NULL, out);
}

int answer_take(answer *a, int choice, const reply_frame *f, buf *out) {
    answer_choice *c = &a->choices[choice];
    if (!c->is_begun && out)
        put_first_event(a, choice, out);
    else if (!c->is_begun)
        begin_choice(a, choice);
    c->n_tokens += f->n_tokens;
    if (a->o.has_logprobs)
        take_logprobs(a, c, f);
    if (out)
        put_text_event(a, choice, f, out);
    else
        buf_put(&c->text, f->text, f->n_text);
    return c->n_tokens;
}

static const char *finish_name(reply_finish finish) {
    return finish == FINISH_LENGTH ? "length" : "stop";
}

void answer_put_finish(answer *a, int choice, reply_finish finish, const char *limited_by,
                       buf *out) {
    if (!a->choices[choice].is_begun)
        put_first_event(a, choice, out);
    put_event_head(a, choice, out);
    if (a->o.is_chat)
        PUT(out, ",\"delta\":{}");
    else
        PUT(out, ",\"text\":\"\"");
    buf_printf(out, ",\"logprobs\":null,\"finish_reason\":\"%s\"}", finish_name(finish));
    put_event_tail(a, limited_by, out);
}

static void put_usage(const answer_usage *u, buf *out) {
    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%d},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
               u->prompt_tokens, u->completion_tokens, u->prompt_tokens + u->completion_tokens,
               u->cached_tokens);
}

void answer_put_done(const answer *a, const answer_usage *u, buf *out) {
    if (a->o.has_usage) {
        buf_put(out, a->head.data, a->head.len);
        PUT(out, "],");
        put_usage(u, out);
        PUT(out, "}\n\n");
    }
    PUT(out, "data: [DONE]\n\n");
}

void answer_put_error_event(const err *e, buf *out) {
    PUT(out, "data: ");
    openai_error_body(e, out);
    PUT(out, "\n\n");
}

// ---- one body

static void put_body_logprobs(const answer *a, int choice, buf *out) {
    const answer_choice *c = &a->choices[choice];
    PUT(out, ",\"logprobs\":");
    if (!a->o.has_logprobs)
        PUT(out, "null");
    else if (a->o.is_chat)
        put_chat_logprobs(c, out);
    else
        logprob_lists_write(&prompt_of(a, choice)->logprobs, &c->legacy, out);
}

static void put_body_choice(const answer *a, int choice, reply_finish finish, buf *out) {
    const answer_choice *c = &a->choices[choice];
    buf_printf(out, "{\"index\":%d,", choice);
    if (a->o.is_chat) {
        PUT(out, "\"message\":{\"role\":\"assistant\",\"content\":");
        put_text(out, c->text.data, c->text.len);
        PUT(out, ",\"refusal\":null}");
    } else {
        buf whole = {0};
        buf_put(&whole, prompt_of(a, choice)->echo.data, prompt_of(a, choice)->echo.len);
        buf_put(&whole, c->text.data, c->text.len);
        PUT(out, "\"text\":");
        put_text(out, whole.data, whole.len);
        buf_release(&whole);
    }
    put_body_logprobs(a, choice, out);
    buf_printf(out, ",\"finish_reason\":\"%s\"}", finish_name(finish));
}

void answer_put_body(answer *a, const reply_finish *finish, const answer_usage *u,
                     const char *limited_by, buf *out) {
    buf_put(out, a->meta.data, a->meta.len);
    PUT(out, "\"choices\":[");
    for (int i = 0; i < a->n_choices; i++) {
        if (i)
            PUT(out, ",");
        put_body_choice(a, i, finish[i], out);
    }
    PUT(out, "],");
    put_usage(u, out);
    if (limited_by) {
        PUT(out, ",\"metadata\":{\"x-tiergate-limited-by\":");
        buf_put_json(out, limited_by, strlen(limited_by));
        PUT(out, "}");
    }
    PUT(out, "}");
}
