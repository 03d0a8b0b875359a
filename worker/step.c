// Planning and running a pass. Places in the engine are given in order of arrival; when its KV
// pages run out, the youngest choice loses its place and feeds its tokens again later, but for
// those the prefix cache still has. Choices of one job share the prompt: the first feeds all but
// its last token, the others fork from there.
#include "worker/step.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"

enum { PAGE_TOKENS = 16 }; // room that every running sequence may need at its next step

void stepper_init(stepper *s, engine *g, const model *m, int slots, int step_tokens, int draft_rows,
                  int prefill_percent) {
    *s = (stepper){.g = g,
                   .m = m,
                   .slots = slots,
                   .step_tokens = step_tokens < slots ? slots : step_tokens,
                   .draft_rows = draft_rows,
                   .pace.percent = prefill_percent};
    s->plan.cap = slots;
    s->plan.rows = calloc((size_t)slots, sizeof *s->plan.rows);
    s->plan.runs = calloc((size_t)slots, sizeof *s->plan.runs);
    s->plan.choices = calloc((size_t)slots, sizeof *s->plan.choices);
    if (!s->plan.rows || !s->plan.runs || !s->plan.choices)
        fatal("no memory for the plan of a step");
}

void stepper_release(stepper *s) {
    free(s->plan.rows);
    free(s->plan.runs);
    free(s->plan.choices);
}

int stepper_used(const run *runs) {
    int n = 0;
    for (const run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            n += r->choices[i].seq != NULL;
    return n;
}

// ---- places in the engine

// Tokens that the sequences in the engine will still store before they decode, and a page each for
// the next steps.
static int64_t promised(const run *runs) {
    int64_t n = 0;
    for (const run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            if (r->choices[i].seq)
                n += choice_left(&r->choices[i]) + PAGE_TOKENS;
    return n;
}

static bool may_fork(const run *r, const choice *c) {
    const choice *head = &r->choices[0];
    return c != head && c->n == r->j.n_prompt && head->seq && head->fed == r->j.n_prompt - 1;
}

// Whether all of c's tokens and the next steps of everyone fit. What running sequences hold of its
// prefix needs no room; it is looked up only when that decides.
static bool has_room(const stepper *s, const run *runs, const run *r, const choice *c) {
    int64_t free = engine_kv_tokens_free(s->g) - promised(runs), wanted = c->n + 2 * PAGE_TOKENS;
    return free >= wanted ||
           free >= wanted - engine_kv_tokens_in_use(s->g, run_get_salt(r), c->tokens, c->n);
}

// 0: has a place now. 1: no room yet. -1: never (e).
static int place(stepper *s, run *runs, run *r, choice *c, err *e) {
    int i = (int)(c - r->choices);
    if (stepper_used(runs) >= s->slots)
        return 1;
    if (may_fork(r, c)) {
        if (engine_seq_fork(s->g, r->choices[0].seq, i, &c->seq, e))
            return e->code == ERR_OVERLOADED ? 1 : -1;
        c->fed = r->choices[0].fed;
        return 0;
    }
    bool alone = stepper_used(runs) == 0; // one sequence always fits
    if (!alone && !has_room(s, runs, r, c))
        return 1;
    if (engine_seq_new(s->g, &r->j.sampling, i, c->tokens, c->n, choice_made(r, c), run_get_salt(r),
                       &c->seq, e))
        return e->code == ERR_OVERLOADED ? 1 : -1;
    c->fed = engine_seq_length(c->seq);
    if (r->cached < 0)
        r->cached = c->fed < r->j.n_prompt ? c->fed : r->j.n_prompt;
    return 0;
}

// The other choices of a job wait for the first one to have fed the shared part.
static bool waits_for_head(const run *r, const choice *c) {
    const choice *head = &r->choices[0];
    return c != head && !head->done && c->n == r->j.n_prompt && head->n == r->j.n_prompt &&
           head->fed < r->j.n_prompt - 1;
}

static bool heads_a_fork(const run *r, const choice *c) {
    if (c != &r->choices[0] || c->fed >= r->j.n_prompt - 1)
        return false;
    for (int i = 1; i < r->j.n_choices; i++)
        if (!r->choices[i].done && !r->choices[i].seq && r->choices[i].n == r->j.n_prompt)
            return true;
    return false;
}

static void fail(stepper *s, run *r, choice *c, outbox *o, const err *why) {
    log_event(LOG_WARN, "worker.choice_failed", "{s:s,s:i,s:s}", "request", r->j.id, "choice",
              (int)(c - r->choices), "reason", why->message);
    reply_frame *f =
        outbox_add(o, r->j.gateway, r->j.id, r->j.attempt, r->number, (int)(c - r->choices));
    f->flags = REPLY_FAILED | REPLY_LAST;
    f->finish = FINISH_ERROR;
    f->from = choice_made(r, c);
    choice_end(r, c, s->g);
}

static void place_all(stepper *s, run *runs, outbox *o) {
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++) {
            choice *c = &r->choices[i];
            err why = {0};
            if (c->done || c->seq || waits_for_head(r, c))
                continue;
            int rc = place(s, runs, r, c, &why);
            if (rc < 0)
                fail(s, r, c, o, &why);
            if (rc > 0)
                return; // in order of arrival: nobody overtakes
        }
}

// The youngest choice in the engine gives its place up; false when there is only one.
static bool preempt(stepper *s, run *runs) {
    run *of = NULL;
    choice *youngest = NULL;
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            if (r->choices[i].seq) {
                of = r;
                youngest = &r->choices[i];
            }
    if (!youngest || stepper_used(runs) == 1)
        return false;
    log_event(LOG_INFO, "worker.preempted", "{s:s,s:i}", "request", of->j.id, "tokens",
              youngest->fed);
    engine_seq_free(s->g, youngest->seq);
    youngest->seq = NULL;
    youngest->fed = 0;
    return true;
}

// ---- the plan

static void plan_add(step_plan *p, run *r, choice *c, int n) {
    p->rows[p->n] = (engine_row){.seq = c->seq,
                                 .tokens = c->tokens + c->fed,
                                 .n = n,
                                 .sample = c->fed + n == c->n,
                                 .prompt_logprobs = r->j.echo_logprobs && c == &r->choices[0] &&
                                                    c->fed < r->j.n_prompt};
    p->runs[p->n] = r;
    p->choices[p->n++] = c;
    p->n_tokens += n;
}

static int chunk(const stepper *s, const run *r, const choice *c, int budget) {
    int left = choice_left(c), room = budget - s->plan.n_tokens;
    if (heads_a_fork(r, c))
        left = r->j.n_prompt - 1 - c->fed;
    return left < room ? left : room;
}

static void plan_rows(stepper *s, run *runs, bool prefill, int budget) {
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++) {
            choice *c = &r->choices[i];
            if (!c->seq || c->done || (choice_left(c) > 1) != prefill)
                continue;
            int n = chunk(s, r, c, budget);
            if (n > 0)
                plan_add(&s->plan, r, c, n);
        }
}

// Guesses that row i may hold beside the others': no more than it may still make, save one.
static int draft_room(const stepper *s, int i) {
    const run *r = s->plan.runs[i];
    const choice *c = s->plan.choices[i];
    int room = (s->draft_rows - s->plan.n) / s->plan.n;
    int answer = r->j.max_tokens - choice_made(r, c) - 1;
    int context = engine_max_context(s->g) - c->n;
    int budget = s->step_tokens - s->plan.n_tokens;
    room = answer < room ? answer : room;
    room = context < room ? context : room;
    return budget < room ? budget : room;
}

// Only decode rows are planned yet. A few rows more cost little as long as the weights are read for
// few; from draft_rows on the company is worth more than guesses.
static void plan_drafts(stepper *s) {
    for (int i = 0; i < s->plan.n; i++) {
        choice *c = s->plan.choices[i];
        int most = draft_room(s, i);
        if (most < 1 || !engine_seq_may_draft(c->seq))
            continue;
        int may = draft_may(&c->pace);
        int n = may ? choice_guess(c, may < most ? may : most) : 0;
        s->plan.rows[i].tokens = c->tokens + c->fed;
        s->plan.rows[i].n += n;
        s->plan.rows[i].n_draft = n;
        s->plan.n_tokens += n;
    }
}

static void plan_make(stepper *s, run *runs, bool with_drafts) {
    s->plan.n = s->plan.n_tokens = 0;
    plan_rows(s, runs, false, s->step_tokens);
    s->plan.n_decode = s->plan.n;
    if (with_drafts)
        plan_drafts(s);
    int left = s->step_tokens - s->plan.n_tokens;
    s->plan.n_prompt = -s->plan.n_tokens;
    plan_rows(s, runs, true,
              s->plan.n_tokens + pace_prompt_tokens(&s->pace, s->plan.n_decode, left));
    s->plan.n_prompt += s->plan.n_tokens;
}

// ---- what came of it

static reply_token token_of(arena *a, const engine_sampled *s, bool wanted) {
    reply_token t = {.id = s->id, .logprob = wanted ? s->logprob : __builtin_nanf("")};
    if (wanted && s->n_top > 0) {
        reply_logprob *top = arena_alloc(a, (size_t)s->n_top * sizeof *top);
        for (int i = 0; i < s->n_top; i++)
            top[i] = (reply_logprob){s->top[i].id, s->top[i].logprob};
        t.top = top;
        t.n_top = s->n_top;
    }
    return t;
}

static reply_frame *frame_for(outbox *o, const run *r, const choice *c) {
    return outbox_add(o, r->j.gateway, r->j.id, r->j.attempt, r->number, (int)(c - r->choices));
}

// The prompt's log-probabilities of one chunk: token k of the chunk is described by the row before
// it. The very first has none.
static void prompt_frame(stepper *s, outbox *o, int i, const engine_result *res) {
    const run *r = s->plan.runs[i];
    const choice *c = s->plan.choices[i];
    const engine_row *row = &s->plan.rows[i];
    int first = c->fed, n = row->n < r->j.n_prompt - first ? row->n : r->j.n_prompt - first;
    reply_frame *f = frame_for(o, r, c);
    f->flags = REPLY_PROMPT;
    f->from = first;
    f->n_tokens = n;
    f->tokens = arena_alloc(outbox_arena(o), (size_t)n * sizeof *f->tokens);
    for (int k = 0; k < n; k++) {
        const engine_sampled *d = k ? &res->prompt[i][k - 1] : &res->first[i];
        f->tokens[k] = token_of(outbox_arena(o), d, k || d->id >= 0);
        f->tokens[k].id = row->tokens[k];
    }
}

static void token_frame(stepper *s, outbox *o, int i, const engine_sampled *sampled, int engine_us,
                        unsigned flags) {
    run *r = s->plan.runs[i];
    choice *c = s->plan.choices[i];
    arena *a = outbox_arena(o);
    buf text = {0};
    reply_frame *f = frame_for(o, r, c);
    f->engine_us = engine_us;
    f->flags = flags;
    if (!r->prefilled) {
        f->flags |= REPLY_PREFILLED;
        f->cached = r->cached;
    }
    r->prefilled = true;
    choice_take(r, c, sampled, s->m, engine_max_context(s->g), f, &text);
    f->tokens = arena_alloc(a, sizeof *f->tokens);
    f->tokens[0] = token_of(a, sampled, r->j.sampling.n_top_logprobs >= 0);
    f->n_tokens = 1;
    f->n_text = text.len;
    f->text = text.len ? arena_dup(a, text.data, text.len) : NULL;
    buf_release(&text);
    if (f->finish != FINISH_NONE)
        choice_end(r, c, s->g);
}

// Engine time that led to no token (a chunk in the middle of a prompt) is reported too, in a frame
// without tokens.
static void progress_frame(stepper *s, outbox *o, int i, int engine_us) {
    reply_frame *f = frame_for(o, s->plan.runs[i], s->plan.choices[i]);
    f->flags = REPLY_HOLD;
    f->engine_us = engine_us;
}

// A frame for each token that row i made: the right guesses, then the sampled one, unless the
// answer ends before. Returns how many.
static int token_frames(stepper *s, const engine_result *res, outbox *o, int i, int engine_us) {
    choice *c = s->plan.choices[i];
    int right = res->n_right[i], made = 0;
    do {
        const engine_sampled *t = made < right ? &res->drafts[i][made] : &res->sampled[i];
        token_frame(s, o, i, t, made ? 0 : engine_us, made ? REPLY_AGAIN : 0);
    } while (made++ < right && !c->done);
    if (s->plan.rows[i].n_draft)
        draft_learn(&c->pace, s->plan.rows[i].n_draft, right);
    s->n_guessed += s->plan.rows[i].n_draft;
    s->n_right += right;
    s->n_made += made;
    return made;
}

static void absorb(stepper *s, const engine_result *res, int64_t step_us, outbox *o,
                   void (*charge)(void *ctx, const run *r, int n), void *ctx) {
    int64_t now = clock_mono_ms();
    for (int i = 0; i < s->plan.n; i++) {
        run *r = s->plan.runs[i];
        choice *c = s->plan.choices[i];
        const engine_row *row = &s->plan.rows[i];
        int share = (int)(step_us * row->n / s->plan.n_tokens);
        if (row->prompt_logprobs)
            prompt_frame(s, o, i, res);
        c->fed += row->n - row->n_draft + res->n_right[i];
        r->last_ms = now;
        if (row->sample) {
            charge(ctx, r, token_frames(s, res, o, i, share));
        } else {
            progress_frame(s, o, i, share);
        }
    }
}

// A row whose logits are not finite is named rows[i]: that choice fails alone.
static bool fail_row(stepper *s, outbox *o, const err *why) {
    int i;
    if (why->code != ERR_INTERNAL || sscanf(why->param, "rows[%d]", &i) != 1 || i < 0 ||
        i >= s->plan.n)
        return false;
    fail(s, s->plan.runs[i], s->plan.choices[i], o, why);
    return true;
}

// Guesses take nothing from anyone and fail nobody: a pass that failed with some is run without.
static bool drop_drafts(const stepper *s, bool *with_drafts) {
    bool had = false;
    for (int i = 0; i < s->plan.n; i++)
        had |= s->plan.rows[i].n_draft > 0;
    *with_drafts = false;
    return had;
}

int stepper_step(stepper *s, run *runs, outbox *o, void (*charge)(void *ctx, const run *r, int n),
                 void *ctx, err *e) {
    bool with_drafts = true;
    place_all(s, runs, o);
    for (;;) {
        const engine_result *res;
        plan_make(s, runs, with_drafts);
        if (s->plan.n == 0)
            return 0;
        int64_t begun = clock_mono_us();
        if (!engine_step(s->g, s->plan.rows, s->plan.n, &res, e)) {
            int64_t us = clock_mono_us() - begun;
            pace_learn(&s->pace, s->plan.n_decode, s->plan.n_prompt, us);
            absorb(s, res, us, o, charge, ctx);
            return 0;
        }
        bool goes_on = drop_drafts(s, &with_drafts) ||
                       (e->code == ERR_OVERLOADED ? preempt(s, runs) : fail_row(s, o, e));
        if (!goes_on)
            return -1;
        *e = (err){0};
    }
}
