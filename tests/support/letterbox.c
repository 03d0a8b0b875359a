// Reads a reply stream and applies its frames. See letterbox.h.
#include "tests/support/letterbox.h"
#include "base/clock.h"
#include "router/queue.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static redis_reply_box *call(letterbox *m, int n, const char *const *argv) {
    redis_reply_box *box = NULL;
    err e = {0};
    if (redis_call(m->r, n, argv, NULL, &box, &e))
        fail_msg("%s", e.message);
    return box;
}

void letterbox_open(letterbox *m, const char *redis_address, uint64_t gateway) {
    char key[64];
    err e = {0};
    *m = (letterbox){.gateway = gateway, .read_to = "-"};
    if (redis_connect(redis_address, 2000, &m->r, &e))
        fail_msg("%s", e.message);
    queue_key_gateway(key, sizeof key, gateway);
    redis_reply_free(call(m, 5, (const char *[]){"XADD", key, "*", "begin", "1"}));
}

void letterbox_end(letterbox *m) {
    char key[64];
    queue_key_gateway(key, sizeof key, m->gateway);
    redis_reply_free(call(m, 2, (const char *[]){"DEL", key}));
}

void letterbox_close(letterbox *m) {
    for (int i = 0; i < m->n_requests; i++) {
        for (int c = 0; c < JOB_CHOICES; c++)
            buf_release(&m->requests[i]->choices[c].text);
        free(m->requests[i]);
    }
    redis_close(m->r);
}

told *letterbox_find(letterbox *m, const char *id) {
    for (int i = 0; i < m->n_requests; i++)
        if (!strcmp(m->requests[i]->id, id))
            return m->requests[i];
    assert_in_range(m->n_requests, 0, 15);
    told *t = calloc(1, sizeof *t);
    assert_non_null(t);
    snprintf(t->id, sizeof t->id, "%s", id);
    return m->requests[m->n_requests++] = t;
}

// A preempted prompt is described again: what is known already is passed over.
static void apply_prompt(told_choice *c, const reply_frame *f) {
    assert_true(f->from <= c->n_prompt);
    for (int i = 0; i < f->n_tokens; i++) {
        int at = f->from + i;
        if (at < c->n_prompt)
            continue;
        c->prompt_ids[at] = f->tokens[i].id;
        c->prompt_logprobs[at] = f->tokens[i].logprob;
        c->n_prompt = at + 1;
    }
}

static void apply_tokens(told_choice *c, const reply_frame *f) {
    for (int i = 0; i < f->n_tokens; i++) {
        assert_int_equal(f->from + i, c->n); // 0, 1, 2, ...
        c->ids[c->n] = f->tokens[i].id;
        c->logprobs[c->n] = f->tokens[i].logprob;
        c->n_top[c->n++] = f->tokens[i].n_top;
    }
    buf_put(&c->text, f->text, f->n_text);
}

static void apply(letterbox *m, const reply_frame *f) {
    told *t = letterbox_find(m, f->id);
    told_choice *c = &t->choices[f->choice];
    assert_true(!(c->flags & REPLY_LAST)); // nothing follows the last frame
    t->n_claims += (f->flags & REPLY_CLAIM) != 0;
    t->n_holds += (f->flags & REPLY_HOLD) != 0;
    t->n_refused += (f->flags & REPLY_REFUSED) != 0;
    t->n_prefilled += (f->flags & REPLY_PREFILLED) != 0;
    t->queue_ms = f->flags & REPLY_CLAIM ? f->queue_ms : t->queue_ms;
    t->n_begun += (f->flags & REPLY_BEGUN) != 0;
    t->queue_steps = f->flags & REPLY_BEGUN ? f->queue_steps : t->queue_steps;
    t->cached = f->flags & REPLY_PREFILLED ? f->cached : t->cached;
    t->engine_us += f->engine_us;
    t->run = f->run;
    c->flags |= f->flags;
    c->finish = f->flags & REPLY_LAST ? f->finish : c->finish;
    if (f->flags & REPLY_PROMPT)
        apply_prompt(c, f);
    else
        apply_tokens(c, f);
}

static void apply_entry(letterbox *m, const redis_value *entry) {
    const redis_value *fields = redis_value_at(entry, 1);
    size_t n;
    const char *bytes = redis_value_str(redis_value_at(fields, 1), &n);
    snprintf(m->read_to, sizeof m->read_to, "(%s", redis_value_str(redis_value_at(entry, 0), NULL));
    if (!redis_value_is(redis_value_at(fields, 0), "r"))
        return; // the entry that made the stream
    arena a;
    reply r;
    err e = {0};
    arena_init(&a);
    if (reply_decode(bytes, n, &a, &r, &e))
        fail_msg("%s", e.message);
    m->worker = r.worker;
    m->n_replies++;
    for (int i = 0; i < r.n_frames; i++)
        apply(m, &r.frames[i]);
    arena_release(&a);
}

void letterbox_read(letterbox *m) {
    char key[64];
    queue_key_gateway(key, sizeof key, m->gateway);
    redis_reply_box *box = call(m, 4, (const char *[]){"XRANGE", key, m->read_to, "+"});
    const redis_value *all = redis_reply_value(box);
    for (size_t i = 0; i < redis_value_len(all); i++)
        apply_entry(m, redis_value_at(all, i));
    redis_reply_free(box);
}

static bool is_told(const told *t, int n_choices) {
    bool all = true;
    for (int i = 0; i < n_choices; i++)
        all = all && t->choices[i].flags & REPLY_LAST;
    return all || t->n_refused;
}

bool letterbox_wait_last(letterbox *m, const char *id, int n_choices, int ms) {
    int64_t until = clock_mono_ms() + ms;
    for (;;) {
        letterbox_read(m);
        if (is_told(letterbox_find(m, id), n_choices))
            return true;
        if (clock_mono_ms() > until)
            return false;
        clock_sleep_ms(5);
    }
}

job letterbox_job(const letterbox *m, int number, const int32_t *prompt, int n_prompt,
                  int max_tokens) {
    job j = {.attempt = 1,
             .gateway = m->gateway,
             .ms_left = 60000,
             .tenant = "01900000-0000-7000-8000-00000000000a",
             .model = "tiny",
             .prompt = prompt,
             .n_prompt = n_prompt,
             .n_choices = 1,
             .max_tokens = max_tokens,
             .ignore_end = true};
    j.sampling = (sampling_params){.top_p = 1, .repetition_penalty = 1, .n_top_logprobs = -1};
    snprintf(j.id, sizeof j.id, "01900000-0000-7000-8000-%012x", (unsigned)number);
    return j;
}
