// Planning and running passes with a tiny model: whatever stands beside a choice, wherever its
// prompt is cut, and however often it loses its place, its tokens are those it gets alone.
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

// ---- side by side

static void sequences_side_by_side_get_what_each_gets_alone(void **state) {
    (void)state;
    bench b, one;
    bench_open(&b, 4, 8, BENCH_ROOMY); // prompts come in chunks of what is left of 8
    job j[3] = {bench_job(&b.m, 1, 0, 50, 30), bench_job(&b.m, 2, 9, 1, 60),
                bench_job(&b.m, 3, 30, 23, 20)};
    for (int i = 0; i < 3; i++)
        bench_add(&b, &j[i]);
    bench_run(&b);
    assert_int_equal(b.charged, 30 + 60 + 20);
    assert_int_equal(b.most_used, 3);
    for (int i = 0; i < 3; i++) {
        bench_alone(&one, &j[i]);
        bench_same(bench_told(&b, &j[i]), bench_told(&one, &j[i]), 1);
        assert_int_equal(bench_told(&b, &j[i])->n_prefilled, 1);
        assert_true(bench_told(&b, &j[i])->engine_us > 0);
        bench_close(&one);
    }
    assert_true(bench_told(&b, &j[0])->n_holds > 0); // chunks in the middle of a prompt
    bench_close(&b);
}

static void a_pass_keeps_to_its_budget_and_decodes_first(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 4, 8, BENCH_ROOMY);
    job j[2] = {bench_job(&b.m, 1, 0, 3, 40), bench_job(&b.m, 2, 9, 40, 5)};
    bench_add(&b, &j[0]);
    bench_step(&b);
    bench_add(&b, &j[1]);
    for (int i = 0; i < 5; i++) {
        bench_step(&b);
        assert_in_range(b.s.plan.n_tokens, 1, 8);
        assert_ptr_equal(b.s.plan.runs[0], b.runs); // the one that decodes
        assert_int_equal(b.s.plan.rows[0].n, 1);
        assert_int_equal(b.s.plan.rows[1].n, 7);
    }
    bench_close(&b);
}

static void places_are_given_in_order_of_arrival(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    job j[4];
    for (int i = 0; i < 4; i++) {
        j[i] = bench_job(&b.m, i + 1, i, 10, 10 + 10 * i);
        bench_add(&b, &j[i]);
    }
    bench_step(&b);
    int used;
    assert_int_equal(bench_seats(&b, &used), 3);
    bench_run(&b);
    assert_int_equal(b.most_used, 2);
    for (int i = 0; i < 4; i++)
        assert_int_equal(bench_told(&b, &j[i])->choices[0].n, 10 + 10 * i);
    bench_close(&b);
}

static void a_small_job_does_not_overtake_a_large_one_that_waits_for_room(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 4, 64, 160);
    job j[3] = {bench_job(&b.m, 1, 0, 60, 20), bench_job(&b.m, 2, 9, 90, 5),
                bench_job(&b.m, 3, 30, 2, 5)};
    run *r[3];
    for (int i = 0; i < 3; i++)
        r[i] = bench_add(&b, &j[i]);
    for (int i = 0; i < 10; i++) {
        bench_step(&b);
        assert_null(r[1]->choices[0].seq); // there is no room for it
        assert_null(r[2]->choices[0].seq); // there is, but it came later
    }
    bench_run(&b);
    for (int i = 0; i < 3; i++)
        assert_int_equal(bench_told(&b, &j[i])->choices[0].finish, FINISH_LENGTH);
    bench_close(&b);
}

// ---- choices

static void choices_fork_after_the_shared_prompt_and_get_what_they_get_alone(void **state) {
    (void)state;
    static const int lengths[] = {1, 2, 16, 17, 45};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bench b, one;
        bench_open(&b, 8, 16, BENCH_ROOMY);
        job j = bench_job(&b.m, 1, 0, lengths[i], 20), other = bench_job(&b.m, 2, 50, 30, 20);
        j.n_choices = 4;
        bench_add(&b, &other);
        run *r = bench_add(&b, &j);
        while (!r->choices[3].seq)
            bench_step(&b);
        for (int k = 0; k < 4; k++) // all of them start from the same place
            assert_true(engine_seq_length(r->choices[k].seq) >= lengths[i] - 1);
        bench_run(&b);
        bench_alone(&one, &j);
        bench_same(bench_told(&b, &j), bench_told(&one, &j), 4);
        assert_memory_not_equal(bench_told(&b, &j)->choices[0].ids,
                                bench_told(&b, &j)->choices[1].ids, 20 * sizeof(int32_t));
        assert_int_equal(bench_told(&b, &j)->n_prefilled, 1);
        bench_close(&one);
        bench_close(&b);
    }
}

static void choices_without_a_place_come_later(void **state) {
    (void)state;
    bench b, one;
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 20, 15);
    j.n_choices = 5;
    bench_add(&b, &j);
    bench_run(&b);
    bench_alone(&one, &j);
    bench_same(bench_told(&b, &j), bench_told(&one, &j), 5);
    bench_close(&one);
    bench_close(&b);
}

static void a_choice_that_comes_when_the_first_one_is_far_starts_from_the_prompt(void **state) {
    (void)state;
    bench b, one;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    job brief = bench_job(&b.m, 1, 0, 5, 8), j = bench_job(&b.m, 2, 9, 20, 30);
    j.n_choices = 2;
    bench_add(&b, &brief);
    run *r = bench_add(&b, &j);
    while (!r->choices[1].seq)
        bench_step(&b);
    assert_true(choice_made(r, &r->choices[0]) > 3);
    bench_run(&b);
    bench_alone(&one, &j);
    bench_same(bench_told(&b, &j), bench_told(&one, &j), 2);
    bench_close(&one);
    bench_close(&b);
}

// ---- preemption

static void a_full_kv_cache_takes_places_back_and_changes_no_token(void **state) {
    (void)state;
    bench b, one;
    bench_open(&b, 4, 32, 160); // 10 pages; each job ends with 5 or 6
    job j[3] = {bench_job(&b.m, 1, 0, 20, 70), bench_job(&b.m, 2, 9, 25, 60),
                bench_job(&b.m, 3, 30, 12, 75)};
    for (int i = 0; i < 3; i++) {
        j[i].stops[0] = (job_stop){"qq", 2};
        j[i].n_stops = 1;
        bench_add(&b, &j[i]);
    }
    bench_run(&b);
    assert_true(b.n_preempted > 0);
    for (int i = 0; i < 3; i++) {
        bench_alone(&one, &j[i]);
        bench_same(bench_told(&b, &j[i]), bench_told(&one, &j[i]), 1);
        bench_close(&one);
    }
    bench_close(&b);
}

static void choices_that_lose_their_places_change_no_token(void **state) {
    (void)state;
    bench b, one;
    bench_open(&b, 8, 16, 144); // 9 pages
    job j = bench_job(&b.m, 1, 0, 33, 60), k = bench_job(&b.m, 2, 70, 18, 60);
    j.n_choices = 3;
    k.n_choices = 2;
    bench_add(&b, &j);
    bench_add(&b, &k);
    bench_run(&b);
    assert_true(b.n_preempted > 0);
    bench_alone(&one, &j);
    bench_same(bench_told(&b, &j), bench_told(&one, &j), 3);
    bench_close(&one);
    bench_alone(&one, &k);
    bench_same(bench_told(&b, &k), bench_told(&one, &k), 2);
    bench_close(&one);
    bench_close(&b);
}

// ---- a flood and visitors

static job visitor_job(const bench *b, int number, char tenant, int n_prompt, int max_tokens) {
    job j = bench_job(&b->m, number, number, n_prompt, max_tokens);
    j.tenant[ID_UUID_TEXT - 2] = tenant; // the others are of tenant a
    return j;
}

static void flood(bench *b, job *jobs, run **runs, int n, int n_prompt, int max_tokens) {
    for (int i = 0; i < n; i++) {
        jobs[i] = bench_job(&b->m, i + 1, i, n_prompt, max_tokens);
        runs[i] = bench_add(b, &jobs[i]);
    }
}

static void assert_all_as_alone(bench *b, job *jobs, int n) {
    bench one;
    for (int i = 0; i < n; i++) {
        assert_int_equal(bench_told(b, &jobs[i])->n_begun, 1);
        bench_alone(&one, &jobs[i]);
        bench_same(bench_told(b, &jobs[i]), bench_told(&one, &jobs[i]), 1);
        bench_close(&one);
    }
}

static void a_visitor_begins_at_the_next_step_although_all_places_are_taken(void **state) {
    (void)state;
    bench b;
    job j[7];
    run *r[7];
    int used;
    bench_open(&b, 4, 64, BENCH_ROOMY);
    flood(&b, j, r, 6, 10, 40); // two of them wait
    for (int i = 0; i < 5; i++)
        bench_step(&b);
    j[6] = visitor_job(&b, 7, 'b', 20, 10);
    r[6] = bench_add(&b, &j[6]);
    bench_step(&b);
    assert_int_equal(bench_seats(&b, &used), 1 | 2 | 4 | 64); // the youngest of the flood gave way
    assert_int_equal(b.s.n_evicted, 1);
    for (int i = 0; i < 5; i++)
        bench_step(&b);
    assert_int_equal(b.s.n_evicted, 1); // and does not take it back
    bench_run(&b);
    assert_int_equal(bench_told(&b, &j[6])->queue_steps, 0);
    assert_true(bench_told(&b, &j[4])->queue_steps > 10);
    assert_all_as_alone(&b, j, 7);
    bench_close(&b);
}

static void free_places_go_to_the_tenants_that_have_the_fewest(void **state) {
    (void)state;
    bench b;
    job j[5];
    run *r[5];
    int used;
    bench_open(&b, 3, 64, BENCH_ROOMY);
    flood(&b, j, r, 3, 10, 5);
    for (int i = 3; i < 5; i++) {
        j[i] = visitor_job(&b, i + 1, 'b', 10, 5);
        r[i] = bench_add(&b, &j[i]);
    }
    bench_step(&b);
    assert_int_equal(bench_seats(&b, &used), 1 | 2 | 8);
    bench_run(&b);
    assert_int_equal(b.s.n_evicted, 0);
    bench_close(&b);
}

static void visitors_at_once_share_the_places_and_the_oldest_keeps_its_own(void **state) {
    (void)state;
    bench b;
    job j[15];
    run *r[15];
    bench_open(&b, 4, 64, BENCH_ROOMY);
    flood(&b, j, r, 4, 10, 60);
    bench_step(&b);
    for (int i = 4; i < 15; i++) {
        j[i] = visitor_job(&b, i + 1, (char)('0' + i % 10), 8, 6);
        r[i] = bench_add(&b, &j[i]);
    }
    bench_step(&b);
    for (int i = 4; i < 7; i++)
        assert_non_null(r[i]->choices[0].seq);
    while (!r[0]->choices[0].done) {
        assert_non_null(r[0]->choices[0].seq);
        bench_step(&b);
    }
    bench_run(&b);
    for (int i = 4; i < 15; i++) // four places, one of them the flood's: rounds of three
        assert_in_range(bench_told(&b, &j[i])->queue_steps, (i - 4) / 3 * 6, (i - 4) / 3 * 8);
    assert_all_as_alone(&b, j, 15);
    bench_close(&b);
}

static void a_flood_is_served_beside_visitors_that_never_end(void **state) {
    (void)state;
    bench b;
    job j[4], k = {0};
    run *r[4], *visitor = NULL;
    int n = 0;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    flood(&b, j, r, 4, 10, 30);
    while (!r[0]->choices[0].done || !r[1]->choices[0].done || !r[2]->choices[0].done) {
        if (n < 11 && (!visitor || !visitor->n_live)) {
            k = visitor_job(&b, 5 + n++, 'b', 8, 10);
            visitor = bench_add(&b, &k);
        }
        assert_in_range(b.s.n_steps, 0, 400);
        bench_step(&b);
    }
    assert_in_range(n, 5, 11);
    bench_run(&b);
    assert_all_as_alone(&b, j, 4);
    bench_close(&b);
}

static void a_visitor_gets_kv_of_the_flood(void **state) {
    (void)state;
    bench b;
    job j[5];
    run *r[5];
    bench_open(&b, 8, 64, 256); // 16 pages
    flood(&b, j, r, 4, 20, 60); // each wants five in the end
    for (int i = 0; i < 30; i++)
        bench_step(&b);
    j[4] = visitor_job(&b, 5, 'b', 70, 60);
    r[4] = bench_add(&b, &j[4]);
    bench_step(&b);
    assert_non_null(r[4]->choices[0].seq);
    assert_non_null(r[0]->choices[0].seq);
    while (!r[4]->choices[0].done) { // whatever the others want, they have more places
        assert_non_null(r[4]->choices[0].seq);
        bench_step(&b);
    }
    bench_run(&b);
    assert_all_as_alone(&b, j, 5);
    bench_close(&b);
}

static void one_too_long_to_get_enough_kv_disturbs_nobody_and_comes_next(void **state) {
    (void)state;
    bench b;
    job j[6];
    run *r[6];
    bench_open(&b, 8, 128, 160); // 10 pages
    flood(&b, j, r, 2, 20, 30);  // three or four each
    bench_step(&b);
    j[2] = visitor_job(&b, 3, 'b', 100, 5);
    j[3] = visitor_job(&b, 4, 'c', 5, 5);
    for (int i = 2; i < 4; i++)
        r[i] = bench_add(&b, &j[i]);
    while (!r[2]->choices[0].seq) {
        assert_int_equal(b.s.n_evicted, 0);
        assert_null(r[3]->choices[0].seq);
        bench_step(&b);
        assert_true(r[2]->choices[0].seq || b.s.short_seats == 0);
    }
    assert_int_equal(b.s.short_seats, r[3]->choices[0].seq ? -1 : 0);
    bench_run(&b);
    assert_all_as_alone(&b, j, 4);
    bench_close(&b);
}

static void a_lane_gives_way_to_its_own_and_to_those_above(void **state) {
    (void)state;
    static const struct {
        lane flood, visitor;
        bool gives;
    } cases[] = {{LANE_INTERACTIVE, LANE_BATCH, false}, {LANE_COMPLETION, LANE_INTERACTIVE, false},
                 {LANE_BATCH, LANE_BATCH, true},        {LANE_BATCH, LANE_COMPLETION, true},
                 {LANE_INTERACTIVE, LANE_LAST, true},   {LANE_LAST, LANE_BATCH, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bench b;
        job j[5];
        run *r[5];
        bench_open(&b, 4, 64, BENCH_ROOMY);
        b.lane = cases[i].flood;
        flood(&b, j, r, 4, 10, 20);
        bench_step(&b);
        b.lane = cases[i].visitor;
        j[4] = visitor_job(&b, 5, i % 2 ? 'a' : 'b', 8, 5); // another lane of a tenant is another
        r[4] = bench_add(&b, &j[4]);
        bool is_other = i % 2 == 0 || cases[i].flood != cases[i].visitor;
        bench_step(&b);
        assert_int_equal(r[4]->choices[0].seq != NULL, cases[i].gives && is_other);
        bench_run(&b);
        bench_close(&b);
    }
}

static void tenants_share_what_a_step_feeds_of_prompts(void **state) {
    (void)state;
    bench b;
    job j[6];
    run *r[6];
    bench_open(&b, 6, 30, BENCH_ROOMY);
    flood(&b, j, r, 4, 60, 5);
    bench_step(&b);
    j[4] = visitor_job(&b, 5, 'b', 60, 5);
    j[5] = visitor_job(&b, 6, 'c', 4, 5);
    for (int i = 4; i < 6; i++)
        r[i] = bench_add(&b, &j[i]);
    bench_step(&b);
    assert_int_equal(r[0]->choices[0].fed, 30 + 10 + 6); // and what the visitor c has left over
    assert_int_equal(r[4]->choices[0].fed, 10);
    assert_int_equal(r[5]->choices[0].fed, 4);
    bench_run(&b);
    assert_all_as_alone(&b, j, 6);
    bench_close(&b);
}

// ---- continuation

static void penalise(job *j) {
    j->sampling.presence_penalty = 1.5f;
    j->sampling.frequency_penalty = 0.5f;
    j->sampling.repetition_penalty = 1.1f;
}

// What the gateway was told with the first n tokens.
static void told_by(const job *j, const int32_t *ids, int n, buf *out) {
    text_stream t;
    text_init(&t, model_tokenizer(bench_model), j->stops, j->n_stops);
    for (int i = 0; i < n; i++)
        text_add(&t, ids[i], out);
    text_release(&t);
}

static void another_attempt_goes_on_where_the_gateway_was(void **state) {
    (void)state;
    static const int32_t letters[] = {'a', 'b', 0xc3, 0xa9}; // many characters are cut by a split
    bench whole;
    job j = bench_job(&(letterbox){0}, 1, 0, 21, 40);
    penalise(&j);
    for (int i = 0; i < 4; i++)
        j.sampling.bias[j.sampling.n_bias++] = (logit_bias){letters[i], 100};
    j.stops[0] = (job_stop){"abababab", 8}; // held back, never complete
    j.n_stops = 1;
    bench_alone(&whole, &j);
    const told_choice *all = &bench_told(&whole, &j)->choices[0];
    for (int split = 1; split < 40; split += 2) {
        bench b;
        buf text = {0};
        bench_open(&b, 2, 16, BENCH_ROOMY);
        job again = j;
        again.attempt = 2;
        again.so_far[0].ids = all->ids;
        again.so_far[0].n = split;
        bench_add(&b, &again);
        bench_run(&b);
        const told_choice *rest = &bench_told(&b, &again)->choices[0];
        assert_int_equal(rest->n, 40);
        assert_memory_equal(rest->ids + split, all->ids + split,
                            (size_t)(40 - split) * sizeof(int32_t));
        told_by(&j, all->ids, split, &text);
        buf_put(&text, rest->text.data, rest->text.len);
        assert_int_equal(text.len, all->text.len);
        assert_memory_equal(text.data, all->text.data, text.len);
        assert_int_equal(rest->finish, FINISH_LENGTH);
        buf_release(&text);
        bench_close(&b);
    }
    bench_close(&whole);
}

static void a_choice_that_is_finished_is_not_made_again(void **state) {
    (void)state;
    bench whole, b;
    job j = bench_job(&(letterbox){0}, 1, 0, 21, 12);
    j.n_choices = 3;
    bench_alone(&whole, &j);
    const told *all = bench_told(&whole, &j);
    bench_open(&b, 4, 16, BENCH_ROOMY);
    job again = j;
    for (int i = 0; i < 3; i++)
        again.so_far[i].ids = all->choices[i].ids;
    again.so_far[0].n = 12;
    again.so_far[0].finished = true;
    again.so_far[1].n = 5;
    run *r = bench_add(&b, &again);
    assert_int_equal(r->n_live, 2);
    bench_run(&b);
    const told *rest = bench_told(&b, &again);
    assert_int_equal(rest->choices[0].flags, 0);
    for (int i = 1; i < 3; i++) {
        assert_int_equal(rest->choices[i].n, 12);
        assert_memory_equal(rest->choices[i].ids + again.so_far[i].n,
                            all->choices[i].ids + again.so_far[i].n,
                            (size_t)(12 - again.so_far[i].n) * sizeof(int32_t));
    }
    bench_close(&b);
    bench_close(&whole);
}

// ---- how a choice ends

static void an_end_token_ends_it_unless_ignored(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job j = letterbox_job(&b.m, 1, bench_prompt, 5, 10),
        k = letterbox_job(&b.m, 2, bench_prompt, 5, 10);
    j.sampling.n_bias = k.sampling.n_bias = 1;
    j.sampling.bias[0] = k.sampling.bias[0] = (logit_bias){256, 100};
    j.ignore_end = false;
    bench_add(&b, &j);
    bench_add(&b, &k);
    bench_run(&b);
    const told_choice *ended = &bench_told(&b, &j)->choices[0];
    assert_int_equal(ended->n, 1);
    assert_int_equal(ended->ids[0], 256);
    assert_int_equal(ended->finish, FINISH_STOP);
    assert_int_equal(ended->text.len, 0);
    assert_int_equal(bench_told(&b, &k)->choices[0].n, 10);
    assert_int_equal(bench_told(&b, &k)->choices[0].finish, FINISH_LENGTH);
    bench_close(&b);
}

static void a_stop_string_ends_it_and_is_not_told(void **state) {
    (void)state;
    bench whole, b;
    job j = bench_job(&(letterbox){0}, 1, 0, 21, 60);
    for (int i = 0; i < 26; i++) // letters only, so that the text is plain
        j.sampling.bias[j.sampling.n_bias++] = (logit_bias){97 + i, 100};
    bench_alone(&whole, &j);
    const told_choice *all = &bench_told(&whole, &j)->choices[0];
    assert_int_equal(all->text.len, 60);
    char stop[4] = {0};
    memcpy(stop, all->text.data + 20, 3);
    const char *first = memmem(all->text.data, all->text.len, stop, 3);
    size_t at = (size_t)(first - all->text.data);
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job k = j;
    k.stops[0] = (job_stop){stop, 3};
    k.n_stops = 1;
    bench_add(&b, &k);
    bench_run(&b);
    const told_choice *cut = &bench_told(&b, &k)->choices[0];
    assert_int_equal(cut->finish, FINISH_STOP);
    assert_int_equal(cut->text.len, at);
    assert_memory_equal(cut->text.data, all->text.data, at);
    assert_int_equal(cut->n, at + 3); // the tokens of the stop were made, and count
    bench_close(&b);
    bench_close(&whole);
}

static void the_models_context_ends_it(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 200, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, TINY_CONTEXT - 3, 1000);
    bench_add(&b, &j);
    bench_run(&b);
    const told_choice *c = &bench_told(&b, &j)->choices[0];
    assert_int_equal(c->n, 3);
    assert_int_equal(c->finish, FINISH_LENGTH);
    bench_close(&b);
}

// ---- log-probabilities

static void the_prompt_is_described_once_and_alike_however_it_is_cut(void **state) {
    (void)state;
    bench a, b;
    bench_open(&a, 2, 512, BENCH_ROOMY);
    job j = bench_job(&a.m, 1, 0, 45, 4);
    j.echo_logprobs = true;
    j.sampling.n_top_logprobs = 2;
    j.n_choices = 2;
    bench_add(&a, &j);
    bench_run(&a);
    bench_open(&b, 3, 7, BENCH_ROOMY);
    job k = j, other = bench_job(&b.m, 2, 60, 30, 20);
    bench_add(&b, &other);
    bench_add(&b, &k);
    bench_run(&b);
    const told_choice *p = &bench_told(&a, &j)->choices[0], *q = &bench_told(&b, &k)->choices[0];
    assert_int_equal(p->n_prompt, 45);
    assert_int_equal(q->n_prompt, 45);
    assert_true(isnan(p->prompt_logprobs[0]) && isnan(q->prompt_logprobs[0]));
    for (int i = 0; i < 45; i++) {
        assert_int_equal(p->prompt_ids[i], bench_prompt[i]);
        assert_int_equal(q->prompt_ids[i], bench_prompt[i]);
        if (i > 0)
            assert_true(fabsf(p->prompt_logprobs[i] - q->prompt_logprobs[i]) < 1e-4f &&
                        p->prompt_logprobs[i] < 0);
    }
    assert_int_equal(bench_told(&a, &j)->choices[1].n_prompt, 0); // the first choice's alone
    assert_int_equal(p->n_top[0], 2);
    assert_true(p->logprobs[0] < 0);
    bench_same(bench_told(&a, &j), bench_told(&b, &k), 2);
    bench_close(&a);
    bench_close(&b);
}

static void log_probabilities_come_only_when_asked(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 5, 3), k = bench_job(&b.m, 2, 0, 5, 3);
    k.sampling.n_top_logprobs = 0;
    bench_add(&b, &j);
    bench_add(&b, &k);
    bench_run(&b);
    assert_true(isnan(bench_told(&b, &j)->choices[0].logprobs[0]));
    assert_true(bench_told(&b, &k)->choices[0].logprobs[0] < 0);
    assert_int_equal(bench_told(&b, &k)->choices[0].n_top[0], 0);
    bench_close(&b);
}

// ---- failure

// The tiny model whose token 'Z' has no finite embedding.
static model *open_broken(void) {
    buf bytes = {0};
    gguf *g = NULL;
    model *m = NULL;
    char path[64];
    err e = {0};
    tiny_model_bytes(tiny_model_find("llama"), &bytes);
    assert_int_equal(gguf_open_memory(bytes.data, bytes.len, &g, &e), 0);
    const gguf_tensor *t = gguf_find(g, "token_embd.weight");
    float nan = NAN;
    memcpy((char *)(uintptr_t)t->data + sizeof nan * (size_t)t->dims[0] * 'Z', &nan, sizeof nan);
    gguf_close(g);
    int fd = memfd_create("broken", MFD_CLOEXEC);
    assert_int_equal(write(fd, bytes.data, bytes.len), (ssize_t)bytes.len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (model_open(path, "", &m, &e))
        fail_msg("%s", e.message);
    close(fd);
    buf_release(&bytes);
    return m;
}

static void a_choice_the_engine_cannot_run_fails_alone(void **state) {
    (void)state;
    static const int32_t bad[] = {'a', 'Z', 'b'};
    bench b, one;
    model *m = open_broken();
    bench_open_model(&b, m, 4, 32, BENCH_ROOMY);
    job good = bench_job(&b.m, 1, 0, 20, 20), broken = letterbox_job(&b.m, 2, bad, 3, 20),
        late = bench_job(&b.m, 3, 40, 20, 20);
    good.sampling.n_bias = late.sampling.n_bias = 1;
    good.sampling.bias[0] = late.sampling.bias[0] = (logit_bias){'Z', -100};
    bench_add(&b, &good);
    bench_add(&b, &broken);
    bench_add(&b, &late);
    bench_run(&b);
    const told_choice *c = &bench_told(&b, &broken)->choices[0];
    assert_int_equal(c->flags & (REPLY_FAILED | REPLY_LAST), REPLY_FAILED | REPLY_LAST);
    assert_int_equal(c->finish, FINISH_ERROR);
    assert_int_equal(c->n, 0);
    bench_open_model(&one, m, 1, 512, BENCH_ROOMY);
    bench_add(&one, &good);
    bench_run(&one);
    bench_same(bench_told(&b, &good), bench_told(&one, &good), 1);
    assert_int_equal(bench_told(&b, &late)->choices[0].n, 20);
    bench_close(&one);
    bench_close(&b);
    model_close(m);
}

static void a_token_outside_the_vocabulary_fails_its_job_alone(void **state) {
    (void)state;
    static const int32_t bad[] = {'a', TINY_VOCAB};
    bench b;
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job broken = letterbox_job(&b.m, 1, bad, 2, 5), good = bench_job(&b.m, 2, 0, 5, 5);
    bench_add(&b, &broken);
    bench_add(&b, &good);
    bench_run(&b);
    assert_int_equal(bench_told(&b, &broken)->choices[0].flags, REPLY_FAILED | REPLY_LAST);
    assert_int_equal(bench_told(&b, &good)->choices[0].n, 5);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequences_side_by_side_get_what_each_gets_alone),
        cmocka_unit_test(a_pass_keeps_to_its_budget_and_decodes_first),
        cmocka_unit_test(places_are_given_in_order_of_arrival),
        cmocka_unit_test(a_small_job_does_not_overtake_a_large_one_that_waits_for_room),
        cmocka_unit_test(choices_fork_after_the_shared_prompt_and_get_what_they_get_alone),
        cmocka_unit_test(choices_without_a_place_come_later),
        cmocka_unit_test(a_choice_that_comes_when_the_first_one_is_far_starts_from_the_prompt),
        cmocka_unit_test(a_full_kv_cache_takes_places_back_and_changes_no_token),
        cmocka_unit_test(choices_that_lose_their_places_change_no_token),
        cmocka_unit_test(a_visitor_begins_at_the_next_step_although_all_places_are_taken),
        cmocka_unit_test(free_places_go_to_the_tenants_that_have_the_fewest),
        cmocka_unit_test(visitors_at_once_share_the_places_and_the_oldest_keeps_its_own),
        cmocka_unit_test(a_flood_is_served_beside_visitors_that_never_end),
        cmocka_unit_test(a_visitor_gets_kv_of_the_flood),
        cmocka_unit_test(one_too_long_to_get_enough_kv_disturbs_nobody_and_comes_next),
        cmocka_unit_test(a_lane_gives_way_to_its_own_and_to_those_above),
        cmocka_unit_test(tenants_share_what_a_step_feeds_of_prompts),
        cmocka_unit_test(another_attempt_goes_on_where_the_gateway_was),
        cmocka_unit_test(a_choice_that_is_finished_is_not_made_again),
        cmocka_unit_test(an_end_token_ends_it_unless_ignored),
        cmocka_unit_test(a_stop_string_ends_it_and_is_not_told),
        cmocka_unit_test(the_models_context_ends_it),
        cmocka_unit_test(the_prompt_is_described_once_and_alike_however_it_is_cut),
        cmocka_unit_test(log_probabilities_come_only_when_asked),
        cmocka_unit_test(a_choice_the_engine_cannot_run_fails_alone),
        cmocka_unit_test(a_token_outside_the_vocabulary_fails_its_job_alone),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, bench_setup, bench_teardown);
}
