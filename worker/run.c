// Choices of a run: making them from a job, taking tokens in, deciding their end. Owner: the step
// thread.
#include "worker/run.h"
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"

static void tokens_reserve(choice *c, int n) {
    if (c->n + n <= c->cap)
        return;
    c->cap = c->cap + c->cap / 2 + 256;
    c->tokens = realloc(c->tokens, (size_t)c->cap * sizeof *c->tokens);
    if (!c->tokens)
        fatal("no memory for %d tokens", c->cap);
}

static void token_append(choice *c, int32_t id) {
    tokens_reserve(c, 1);
    c->tokens[c->n++] = id;
}

static void choice_init(run *r, int i, const model *m) {
    choice *c = &r->choices[i];
    buf said = {0}; // by an earlier attempt
    c->cap = r->j.n_prompt + r->j.so_far[i].n + 256;
    c->tokens = malloc((size_t)c->cap * sizeof *c->tokens);
    if (!c->tokens)
        fatal("no memory for a prompt of %d tokens", r->j.n_prompt);
    memcpy(c->tokens, r->j.prompt, (size_t)r->j.n_prompt * sizeof *c->tokens);
    c->n = r->j.n_prompt;
    c->done = r->j.so_far[i].finished;
    r->n_live += !c->done;
    text_init(&c->text, model_tokenizer(m), r->j.stops, r->j.n_stops);
    for (int k = 0; k < r->j.so_far[i].n; k++) {
        token_append(c, r->j.so_far[i].ids[k]);
        text_add(&c->text, r->j.so_far[i].ids[k], &said);
    }
    buf_release(&said);
}

void run_salt(const secret_ring *cluster, const job *j, const char *model_revision,
              const char *kv_name, uint8_t out[ENGINE_SALT_BYTES]) {
    const char *const parts[] = {"prefix cache", j->tenant, model_revision, j->adapter, kv_name};
    buf b = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        buf_put(&b, parts[i], strlen(parts[i]) + 1); // with its NUL: parts cannot run together
    secret_hmac(&cluster->keys[0], b.data, b.len, out);
    buf_release(&b);
}

const uint8_t *run_get_salt(const run *r) { return r->j.echo_logprobs ? NULL : r->salt; }

run *run_new(arena *a, const job *j, uint64_t number, const queue_claimed *c, const model *m,
             const uint8_t salt[ENGINE_SALT_BYTES]) {
    run *r = calloc(1, sizeof *r);
    if (!r)
        fatal("no memory for a run");
    r->a = *a;
    arena_init(a);
    r->j = *j;
    r->number = number;
    r->lane = c->lane;
    r->weight = c->weight;
    r->cached = -1;
    memcpy(r->salt, salt, sizeof r->salt);
    for (int i = 0; i < j->n_choices; i++)
        choice_init(r, i, m);
    return r;
}

int choice_guess(choice *c, int most) {
    tokens_reserve(c, DRAFT_MOST);
    return draft_find(c->tokens, c->n, most < DRAFT_MOST ? most : DRAFT_MOST, c->tokens + c->n);
}

int choice_made(const run *r, const choice *c) { return c->n - r->j.n_prompt; }

void choice_end(run *r, choice *c, engine *g) {
    engine_seq_free(g, c->seq);
    c->seq = NULL;
    c->fed = 0;
    if (!c->done)
        r->n_live--;
    c->done = true;
}

// What this run made and when, for whoever compares the ledger, or the end of a client, with what
// workers did. Times are monotonic.
static void log_end(const run *r) {
    int made = 0, had = 0;
    for (int i = 0; i < r->j.n_choices; i++) {
        had += r->j.so_far[i].n;
        made += choice_made(r, &r->choices[i]) - r->j.so_far[i].n;
    }
    log_event(LOG_DEBUG, "run.end", "{s:s,s:i,s:I,s:i,s:i,s:I,s:I,s:I}", "request", r->j.id,
              "attempt", r->j.attempt, "run", (long long)r->number, "had", had, "made", made,
              "step_us", (long long)r->step_us, "step_before_us", (long long)r->step_before_us,
              "us", (long long)clock_mono_us());
}

void run_free(run *r, engine *g) {
    log_end(r);
    for (int i = 0; i < r->j.n_choices; i++) {
        engine_seq_free(g, r->choices[i].seq);
        text_release(&r->choices[i].text);
        free(r->choices[i].tokens);
    }
    adapter_let_go(r->adapter);
    arena_release(&r->a);
    free(r);
}

static bool ends_answer(const run *r, const model *m, int32_t id) {
    if (r->j.ignore_end)
        return false;
    return r->j.fim ? model_is_end(m, id) : tokenizer_is_end(model_tokenizer(m), id);
}

void choice_take(run *r, choice *c, const engine_sampled *s, const model *m, int max_context,
                 reply_frame *f, buf *text) {
    f->from = choice_made(r, c);
    token_append(c, s->id);
    if (ends_answer(r, m, s->id)) {
        f->finish = FINISH_STOP;
        text_flush(&c->text, text);
    } else if (text_add(&c->text, s->id, text)) {
        f->finish = FINISH_STOP;
    } else if (choice_made(r, c) >= r->j.max_tokens || c->n >= max_context) {
        f->finish = FINISH_LENGTH;
        text_flush(&c->text, text);
    }
    if (f->finish != FINISH_NONE)
        f->flags |= REPLY_LAST;
}
