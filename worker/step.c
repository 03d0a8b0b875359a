// Planning and running a pass. Places in the engine go to the tenants that have the fewest (per
// lane), then in order of arrival. One that has two places fewer than another tenant takes one of
// it: of the tenant with the most the youngest choice gives way, as it does when KV pages run out.
// It feeds its tokens again later, but for those the prefix cache still has; the oldest of a tenant
// never gives way to another, so nobody starves. Choices of one job share the prompt: the first
// feeds all but its last token, the others fork from there.
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
                   .pace.percent = prefill_percent,
                   .short_seats = -1};
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

int stepper_ended_since(const stepper *s, int64_t then_us) {
    int n = 0;
    while (n < STEPPER_ENDS && n < s->n_steps &&
           s->ends_us[(s->n_steps - 1 - n) % STEPPER_ENDS] > then_us)
        n++;
    return n;
}

int stepper_wanted(const run *runs) {
    int n = 0;
    for (const run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            n += choice_waits(&r->choices[i]);
    return n;
}

int stepper_used(const run *runs) {
    int n = 0;
    for (const run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            n += r->choices[i].seq != NULL;
    return n;
}

// ---- whose places

static void group_join(run *runs, run *r) {
    run *lead = runs, *last = NULL;
    r->group = (run_group){0};
    for (; lead && lead != r; lead = lead->group.next) {
        if (lead->lane == r->lane && !strcmp(lead->j.tenant, r->j.tenant))
            break;
        last = lead;
    }
    r->lead = lead ? lead : r;
    if (!lead)
        last->group.next = r;
}

static void group_all(run *runs) {
    for (run *r = runs; r; r = r->next) {
        group_join(runs, r);
        for (int i = 0; i < r->j.n_choices; i++)
            r->lead->group.seats += r->choices[i].seq != NULL;
    }
}

static int seats(const run *r) { return r->lead->group.seats; }

// A lane takes places from lanes of its rank and below, as find_entitled in router/queue.lua says.
static int rank(const run *r) { return r->lane == LANE_LAST ? LANE_INTERACTIVE : (int)r->lane; }

// The youngest choice of the tenant with the most places, at least n, in lanes from least_rank on;
// NULL: there is none.
static choice *find_victim(run *runs, int least_rank, int n, run **of) {
    choice *found = NULL;
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices && rank(r) >= least_rank && seats(r) >= n; i++)
            if (r->choices[i].seq) {
                found = &r->choices[i];
                *of = r;
                n = seats(r);
            }
    return found;
}

static void evict(stepper *s, run *r, choice *c) {
    log_event(LOG_DEBUG, "worker.preempted", "{s:s,s:i}", "request", r->j.id, "tokens", c->fed);
    engine_seq_free(s->g, c->seq);
    c->seq = NULL;
    c->fed = 0;
    r->lead->group.seats--;
    s->n_evicted++;
}

// Another tenant that keeps as many places as r's then has gives one up for it; false: none does.
static bool take_place(stepper *s, run *runs, const run *r) {
    run *of = NULL;
    choice *c = find_victim(runs, rank(r), seats(r) + 2, &of);
    if (c)
        evict(s, of, c);
    return c != NULL;
}

// Tokens that take_place would free, called until it finds nobody.
static int64_t could_free(run *runs, const run *r) {
    int64_t n = 0;
    for (run *of = runs; of; of = of->next) {
        int *seen = &of->lead->group.seen;
        *seen = of == of->lead ? 0 : *seen;
        for (int i = 0; i < of->j.n_choices; i++)
            if (of->choices[i].seq && ++*seen > seats(r) + 1 && rank(of) >= rank(r))
                n += of->choices[i].n + PAGE_TOKENS;
    }
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

// Whether all of c's tokens and the next steps of everyone fit, `more` being freed. What running
// sequences hold of its prefix needs no room; it is looked up only when that decides.
static bool has_room(const stepper *s, const run *runs, const run *r, const choice *c,
                     int64_t more) {
    int64_t free = engine_kv_tokens_free(s->g) - promised(runs) + more;
    int64_t wanted = c->n + 2 * PAGE_TOKENS;
    return free >= wanted ||
           free >= wanted - engine_kv_tokens_in_use(s->g, run_get_salt(r), c->tokens, c->n);
}

// The same after others gave way, which they do only if that is enough.
static bool make_room(stepper *s, run *runs, run *r, const choice *c) {
    if (has_room(s, runs, r, c, 0))
        return true;
    if (has_room(s, runs, r, c, could_free(runs, r)))
        while (take_place(s, runs, r))
            if (has_room(s, runs, r, c, 0))
                return true;
    s->short_seats = seats(r);
    return false;
}

// 0: has a place now. 1: no room yet. -1: never (e).
static int place(stepper *s, run *runs, run *r, choice *c, err *e) {
    int i = (int)(c - r->choices);
    if (stepper_used(runs) >= s->slots && !take_place(s, runs, r))
        return 1;
    if (may_fork(r, c)) {
        if (engine_seq_fork(s->g, r->choices[0].seq, i, &c->seq, e))
            return e->code == ERR_OVERLOADED ? 1 : -1;
        c->fed = r->choices[0].fed;
        return 0;
    }
    bool alone = stepper_used(runs) == 0; // one sequence always fits
    if (!alone && !make_room(s, runs, r, c))
        return 1;
    if (engine_seq_new(s->g, &r->j.sampling, i, c->tokens, c->n, choice_made(r, c), run_get_salt(r),
                       &c->seq, e))
        return e->code == ERR_OVERLOADED ? 1 : -1;
    engine_seq_adapt(c->seq, r->adapter ? r->adapter->a : NULL);
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
    r->lead->group.seats -= c->seq != NULL;
    choice_end(r, c, s->g);
}

static choice *find_waiting(run *r) { // its first choice that could get a place; NULL: none
    for (int i = 0; i < r->j.n_choices && run_is_ready(r); i++)
        if (choice_waits(&r->choices[i]) && !waits_for_head(r, &r->choices[i]))
            return &r->choices[i];
    return NULL;
}

// The next to get a place: the choice that came first of the tenants with the fewest places.
static choice *find_next(run *runs, run **of) {
    choice *found = NULL;
    for (run *r = runs; r; r = r->next) {
        choice *c = !found || seats(r) < seats(*of) ? find_waiting(r) : NULL;
        if (c) {
            found = c;
            *of = r;
        }
    }
    return found;
}

static void place_all(stepper *s, run *runs, outbox *o) {
    run *r = NULL;
    choice *c;
    group_all(runs);
    s->short_seats = -1;
    while ((c = find_next(runs, &r))) {
        err why = {0};
        int rc = place(s, runs, r, c, &why);
        if (rc < 0)
            fail(s, r, c, o, &why);
        if (rc > 0)
            return; // nobody overtakes
        r->lead->group.seats += c->seq != NULL;
    }
}

// Somebody gives a place up; false when there is only one.
static bool preempt(stepper *s, run *runs) {
    run *of = NULL;
    choice *c = stepper_used(runs) > 1 ? find_victim(runs, 0, 1, &of) : NULL;
    if (c)
        evict(s, of, c);
    return c != NULL;
}

// ---- the plan

static engine_row *plan_row(step_plan *p, run *r, choice *c) {
    for (int i = 0; i < p->n; i++)
        if (p->choices[i] == c)
            return &p->rows[i];
    p->rows[p->n] = (engine_row){.seq = c->seq,
                                 .tokens = c->tokens + c->fed,
                                 .prompt_logprobs = r->j.echo_logprobs && c == &r->choices[0] &&
                                                    c->fed < r->j.n_prompt};
    p->runs[p->n] = r;
    p->choices[p->n] = c;
    return &p->rows[p->n++];
}

// Up to `most` more of the tokens c has to feed, as far as the budget goes.
static void plan_add(stepper *s, run *r, choice *c, int most) {
    step_plan *p = &s->plan;
    int end = heads_a_fork(r, c) ? r->j.n_prompt - 1 : c->n, room = s->step_tokens - p->n_tokens;
    most = most < room ? most : room;
    if (most <= 0)
        return;
    engine_row *row = plan_row(p, r, c);
    int left = end - c->fed - row->n, n = left < most ? left : most;
    row->n += n;
    row->sample = c->fed + row->n == c->n;
    p->n_tokens += n;
}

static choice *find_prefilling(run *r) { // its first choice that does; NULL: none
    for (int i = 0; i < r->j.n_choices; i++)
        if (r->choices[i].seq && choice_left(&r->choices[i]) > 1)
            return &r->choices[i];
    return NULL;
}

static int count_prefilling(run *runs) { // groups
    int n = 0;
    for (run *lead = runs; lead; lead = lead->group.next)
        lead->group.prefills = NULL;
    for (run *r = runs; r; r = r->next)
        if (!r->lead->group.prefills && find_prefilling(r)) {
            r->lead->group.prefills = r;
            n++;
        }
    return n;
}

// A row for each sequence that decodes.
static void plan_decodes(stepper *s, run *runs) {
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            if (r->choices[i].seq && choice_left(&r->choices[i]) == 1)
                plan_add(s, r, &r->choices[i], 1);
    s->plan.n_decode = s->plan.n;
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

// Of `most` tokens of prompts each tenant's first one gets an equal part; the rest goes by arrival.
static void plan_prompts(stepper *s, run *runs, int most) {
    int parts = count_prefilling(runs), before = s->plan.n_tokens, end = before + most;
    for (run *lead = runs; lead; lead = lead->group.next) {
        run *r = lead->group.prefills;
        if (r)
            plan_add(s, r, find_prefilling(r), (end - s->plan.n_tokens) / parts--);
    }
    for (run *r = runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++)
            if (r->choices[i].seq && choice_left(&r->choices[i]) > 1)
                plan_add(s, r, &r->choices[i], end - s->plan.n_tokens);
    s->plan.n_prompt = s->plan.n_tokens - before;
}

static void plan_make(stepper *s, run *runs, bool with_drafts) {
    s->plan.n = s->plan.n_tokens = 0;
    plan_decodes(s, runs);
    if (with_drafts)
        plan_drafts(s);
    int left = s->step_tokens - s->plan.n_tokens;
    plan_prompts(s, runs, pace_prompt_tokens(&s->pace, s->plan.n_decode, left));
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

static void token_frame(stepper *s, outbox *o, int i, const engine_sampled *sampled,
                        reply_frame *f) {
    run *r = s->plan.runs[i];
    choice *c = s->plan.choices[i];
    arena *a = outbox_arena(o);
    buf text = {0};
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

// The frame that tells of row i: its engine time, and at the run's first one how long it waited.
static reply_frame *row_frame(stepper *s, outbox *o, int i, int64_t begun_us, int64_t step_us) {
    run *r = s->plan.runs[i];
    reply_frame *f = frame_for(o, r, s->plan.choices[i]);
    f->engine_us = (int)(step_us * s->plan.rows[i].n / s->plan.n_tokens);
    if (!r->begun) {
        f->flags = REPLY_BEGUN;
        f->queue_ms = (int)((begun_us - r->arrived_us) / 1000);
        f->queue_steps = stepper_ended_since(s, r->arrived_us);
    }
    r->begun = true;
    return f;
}

// A frame for each token that row i made: the right guesses, then the sampled one, unless the
// answer ends before. Returns how many.
static int token_frames(stepper *s, const engine_result *res, outbox *o, int i, reply_frame *f) {
    choice *c = s->plan.choices[i];
    int right = res->n_right[i], made = 0;
    do {
        const engine_sampled *t = made < right ? &res->drafts[i][made] : &res->sampled[i];
        if (made) {
            f = frame_for(o, s->plan.runs[i], c);
            f->flags = REPLY_AGAIN;
        }
        token_frame(s, o, i, t, f);
    } while (made++ < right && !c->done);
    if (s->plan.rows[i].n_draft)
        draft_learn(&c->pace, s->plan.rows[i].n_draft, right);
    s->n_guessed += s->plan.rows[i].n_draft;
    s->n_right += right;
    s->n_made += made;
    return made;
}

// When the last two steps that made tokens of the run began.
static void note_step(run *r, int64_t begun_us) {
    if (r->step_us == begun_us)
        return; // another choice of it
    r->step_before_us = r->step_us;
    r->step_us = begun_us;
}

// Engine time that led to no token (a chunk in the middle of a prompt) is reported too, in a HOLD
// frame.
static void absorb(stepper *s, const engine_result *res, int64_t begun_us, outbox *o,
                   void (*charge)(void *ctx, const run *r, int n), void *ctx) {
    int64_t now_us = clock_mono_us();
    for (int i = 0; i < s->plan.n; i++) {
        run *r = s->plan.runs[i];
        choice *c = s->plan.choices[i];
        const engine_row *row = &s->plan.rows[i];
        if (row->prompt_logprobs)
            prompt_frame(s, o, i, res);
        reply_frame *f = row_frame(s, o, i, begun_us, now_us - begun_us);
        c->fed += row->n - row->n_draft + res->n_right[i];
        r->last_ms = now_us / 1000;
        if (row->sample) {
            note_step(r, begun_us);
            charge(ctx, r, token_frames(s, res, o, i, f));
        } else {
            f->flags |= REPLY_HOLD;
        }
    }
    s->ends_us[s->n_steps++ % STEPPER_ENDS] = now_us;
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
            pace_learn(&s->pace, s->plan.n_decode, s->plan.n_prompt, clock_mono_us() - begun);
            absorb(s, res, begun, o, charge, ctx);
            return 0;
        }
        bool goes_on = drop_drafts(s, &with_drafts) ||
                       (e->code == ERR_OVERLOADED ? preempt(s, runs) : fail_row(s, o, e));
        if (!goes_on)
            return -1;
        *e = (err){0};
    }
}
