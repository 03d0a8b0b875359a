// Guessing from the text so far: what is found, how the pace adapts, and that a pass with guesses
// makes the tokens of one without, beside others, with little KV, with stops and several choices.
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

// ---- finding

static void expect_found(const int32_t *tokens, int n, int most, const int32_t *wanted, int m) {
    int32_t out[DRAFT_MOST];
    assert_int_equal(draft_find(tokens, n, most, out), m);
    if (m)
        assert_memory_equal(out, wanted, (size_t)m * sizeof *out);
}

static void what_followed_the_longest_match_is_guessed(void **state) {
    (void)state;
    const int32_t once[] = {1, 2, 3, 4, 5, 6};
    const int32_t again[] = {1, 2, 3, 4, 9, 1, 2};
    const int32_t longest[] = {7, 1, 2, 50, 8, 1, 2, 60, 7, 1, 2}; // "7 1 2" beats the later "1 2"
    const int32_t latest[] = {8, 1, 2, 50, 9, 1, 2, 60, 3, 1, 2};  // of equals, the later one
    const int32_t same[] = {4, 4, 4, 4};
    expect_found(once, 6, 8, NULL, 0);
    expect_found(again, 7, 8, again + 2, 5);
    expect_found(again, 7, 3, again + 2, 3);
    expect_found(longest, 11, 1, longest + 3, 1);
    expect_found(latest, 11, 1, latest + 7, 1);
    expect_found(same, 4, 8, same, 1);
    expect_found(same, 2, 8, NULL, 0); // one token is no match
    expect_found(same, 0, 8, NULL, 0);
    expect_found(again, 7, 0, NULL, 0);
}

static void the_pace_follows_success(void **state) {
    (void)state;
    draft_pace p = {0};
    assert_int_equal(draft_may(&p), 2);
    draft_learn(&p, 2, 2);
    assert_int_equal(draft_may(&p), 4);
    draft_learn(&p, 4, 4);
    assert_int_equal(draft_may(&p), 8);
    draft_learn(&p, 8, 8);
    assert_int_equal(draft_may(&p), DRAFT_MOST);
    draft_learn(&p, 8, 3);
    assert_int_equal(draft_may(&p), 4);
    for (int misses = 1, wait = 2; misses < 10; misses++, wait = wait < 64 ? 2 * wait : 64) {
        draft_learn(&p, 4, 0);
        for (int i = 0; i < wait; i++)
            assert_int_equal(draft_may(&p), 0);
        assert_int_equal(draft_may(&p), 1);
    }
    draft_learn(&p, 1, 1);
    assert_int_equal(draft_may(&p), 2);
}

// ---- passes

enum { ROWS = 8 };

static void open_guessing(bench *b, int slots, int kv_tokens) {
    bench_open(b, slots, 64, kv_tokens);
    b->s.draft_rows = ROWS;
}

// Nearly all of its tokens are 'a' or 'b', so that its text repeats itself.
static job repetitive(const letterbox *m, int number, int from, int n_prompt, int max_tokens) {
    job j = bench_job(m, number, from, n_prompt, max_tokens);
    j.sampling.n_bias = 2;
    j.sampling.bias[0] = (logit_bias){'a', 20};
    j.sampling.bias[1] = (logit_bias){'b', 19};
    return j;
}

static bool is_decoding(const step_plan *p) {
    for (int i = 0; i < p->n; i++)
        if (p->rows[i].n > 1 + p->rows[i].n_draft)
            return false;
    return p->n > 0;
}

static void run_and_compare(bench *b, job *j, int n) {
    for (int i = 0; i < n; i++)
        bench_add(b, &j[i]);
    bench_run(b);
    for (int i = 0; i < n; i++) {
        bench one;
        bench_alone(&one, &j[i]);
        bench_same(bench_told(b, &j[i]), bench_told(&one, &j[i]), j[i].n_choices);
        assert_int_equal(one.s.n_guessed, 0);
        bench_close(&one);
    }
}

static void guesses_change_no_token_beside_others(void **state) {
    (void)state;
    bench b;
    open_guessing(&b, 4, BENCH_ROOMY);
    job j[] = {repetitive(&b.m, 1, 0, 50, 70), repetitive(&b.m, 2, 9, 1, 100),
               repetitive(&b.m, 3, 30, 23, 60), bench_job(&b.m, 4, 5, 17, 80)};
    j[2].sampling.temperature = 0.3f;
    run_and_compare(&b, j, 4);
    assert_true(b.s.n_right > 20);
    assert_true(b.s.n_guessed > b.s.n_right);
    assert_int_equal(b.charged, 70 + 100 + 60 + 80);
    assert_int_equal(b.s.n_made, b.charged);
    bench_close(&b);
}

static void a_pass_is_filled_up_to_draft_rows_and_not_beyond(void **state) {
    (void)state;
    bench b;
    open_guessing(&b, 16, BENCH_ROOMY);
    job j[12];
    int64_t guessed = 0;
    for (int i = 0; i < 12; i++)
        j[i] = repetitive(&b.m, i + 1, i, 10, 20 + 8 * i);
    for (int i = 0; i < 12; i++)
        bench_add(&b, &j[i]);
    for (bench_step(&b); b.s.plan.n; bench_step(&b)) {
        if (b.s.plan.n >= ROWS)
            assert_int_equal(b.s.n_guessed, guessed); // company is worth more
        else if (is_decoding(&b.s.plan))
            assert_in_range(b.s.plan.n_tokens, b.s.plan.n, ROWS);
        guessed = b.s.n_guessed;
    }
    assert_true(guessed > 0);
    bench_close(&b);
}

static void an_answer_ends_where_it_would(void **state) {
    (void)state;
    bench b;
    open_guessing(&b, 1, BENCH_ROOMY);
    job j = repetitive(&b.m, 2, 0, 60, TINY_CONTEXT);
    run_and_compare(&b, &j, 1); // at the model's context
    bench_close(&b);
    for (int n = 1; n < 12; n++) { // max_tokens anywhere in a run of right guesses
        open_guessing(&b, 1, BENCH_ROOMY);
        j = repetitive(&b.m, 1, 0, 30, 40 + n);
        run_and_compare(&b, &j, 1);
        assert_int_equal(b.charged, 40 + n);
        bench_close(&b);
    }
}

// A stop string that is complete in the middle of right guesses.
static void nothing_is_told_or_charged_behind_a_stop(void **state) {
    (void)state;
    bench whole;
    bench_open(&whole, 1, 64, BENCH_ROOMY);
    job j = repetitive(&whole.m, 1, 0, 30, 90);
    bench_add(&whole, &j);
    bench_run(&whole);
    const buf *text = &bench_told(&whole, &j)->choices[0].text;
    for (size_t end = text->len / 2; end < text->len; end++) {
        bench b;
        open_guessing(&b, 1, BENCH_ROOMY);
        job stops = j;
        stops.stops[0] = (job_stop){text->data + end - 8, 8};
        stops.n_stops = 1;
        run_and_compare(&b, &stops, 1);
        assert_int_equal(b.charged, bench_told(&b, &stops)->choices[0].n);
        bench_close(&b);
    }
    bench_close(&whole);
}

static void choices_and_a_full_cache_change_nothing(void **state) {
    (void)state;
    bench b;
    open_guessing(&b, 4, 176); // less than both need
    job j[] = {repetitive(&b.m, 1, 0, 20, 60), repetitive(&b.m, 2, 20, 20, 60)};
    j[0].n_choices = 2;
    run_and_compare(&b, j, 2);
    assert_true(b.n_preempted > 0);
    assert_true(b.s.n_right > 0);
    bench_close(&b);
}

static void penalties_make_no_guesses(void **state) {
    (void)state;
    bench b;
    open_guessing(&b, 1, BENCH_ROOMY);
    job j = repetitive(&b.m, 1, 0, 30, 80);
    j.sampling.presence_penalty = 0.01f;
    run_and_compare(&b, &j, 1);
    assert_int_equal(b.s.n_guessed, 0);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_followed_the_longest_match_is_guessed),
        cmocka_unit_test(the_pace_follows_success),
        cmocka_unit_test(guesses_change_no_token_beside_others),
        cmocka_unit_test(a_pass_is_filled_up_to_draft_rows_and_not_beyond),
        cmocka_unit_test(an_answer_ends_where_it_would),
        cmocka_unit_test(nothing_is_told_or_charged_behind_a_stop),
        cmocka_unit_test(choices_and_a_full_cache_change_nothing),
        cmocka_unit_test(penalties_make_no_guesses),
    };
    return cmocka_run_group_tests(tests, bench_setup, bench_teardown);
}
