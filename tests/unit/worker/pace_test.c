// The budget of prompts beside decoding sequences, fed with passes of known cost, and that a pass
// keeps to it.
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { MOST = 512 };

// A machine on which a pass costs that many microseconds.
static int64_t cost(int n_decode, int n_prompt) {
    return (n_decode ? 4000 + 500 * n_decode : 0) + 400 * n_prompt;
}

static void teach(pace *p, int n_decode, int n_prompt, int times) {
    for (int i = 0; i < times; i++)
        pace_learn(p, n_decode, n_prompt, cost(n_decode, n_prompt));
}

static void prompts_take_their_share_of_the_decoding_time(void **state) {
    (void)state;
    pace p = {.percent = 100};
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), MOST); // nothing known yet
    teach(&p, 0, 512, 1);
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), MOST);
    teach(&p, 8, 0, 1);
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), cost(8, 0) / 400); // 20
    assert_int_equal(pace_prompt_tokens(&p, 8, 7), 7);                   // the pass has room for
    assert_int_equal(pace_prompt_tokens(&p, 0, MOST), MOST);             // nobody waits
    p.percent = 400;
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), 4 * cost(8, 0) / 400);
    p.percent = 1;
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), PACE_LEAST); // a prompt always goes on
    p.percent = 0;
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), MOST);
}

static void what_a_prompt_token_costs_is_learned_beside_others_too(void **state) {
    (void)state;
    pace p = {.percent = 100};
    teach(&p, 8, 0, 5);
    pace_learn(&p, 8, 64, cost(8, 0) - 1); // told nothing
    assert_true(p.prompt_us <= 0);
    teach(&p, 8, 64, 3);
    assert_int_equal(pace_prompt_tokens(&p, 8, MOST), 20);
    for (int i = 0; i < 40; i++) // the same prompt, deeper: a token costs twice as much
        pace_learn(&p, 8, 10, cost(8, 20));
    assert_int_equal(pace_prompt_tokens(&p, 8, 512), cost(8, 0) / 800);
    assert_in_range((int)p.prompt_us, 790, 801);
}

static void company_of_another_size_has_its_own_time(void **state) {
    (void)state;
    pace p = {.percent = 1000};
    teach(&p, 8, 0, 1);
    teach(&p, 0, 512, 1);
    assert_int_equal(pace_prompt_tokens(&p, 1, MOST), 200); // the nearest that was seen
    assert_int_equal(pace_prompt_tokens(&p, 64, MOST), 200);
    teach(&p, 1, 0, 1);
    assert_int_equal(pace_prompt_tokens(&p, 1, MOST), 112);
    assert_int_equal(pace_prompt_tokens(&p, 2, MOST), 112);
    assert_int_equal(pace_prompt_tokens(&p, 5, MOST), 200); // as 8
    teach(&p, 500, 0, 1);
    assert_int_equal(pace_prompt_tokens(&p, 65, 10000), cost(500, 0) / 40);
}

static void a_pass_keeps_to_the_budget_while_others_decode(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 4, 128, BENCH_ROOMY);
    job j[] = {bench_job(&b.m, 1, 0, 3, 100), bench_job(&b.m, 2, 9, 90, 20),
               bench_job(&b.m, 3, 50, 60, 3)};
    bench_add(&b, &j[0]);
    bench_step(&b);
    bench_step(&b);
    bench_add(&b, &j[1]);
    bench_add(&b, &j[2]);
    for (int i = 0; i < 9; i++) { // 150 prompt tokens
        b.s.pace = (pace){.percent = 100, .decode_us = {1700}, .prompt_us = 100};
        bench_step(&b);
        assert_int_equal(b.s.plan.n_decode, 1 + (i >= 6)); // 90 tokens are fed in six passes
        assert_int_equal(b.s.plan.n_prompt, i < 8 ? 17 : 150 - 8 * 17);
        assert_int_equal(b.s.plan.n_tokens, b.s.plan.n_decode + b.s.plan.n_prompt);
    }
    bench_run(&b);
    bench_close(&b);
}

static void a_prompt_alone_takes_the_whole_pass(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 4, 64, BENCH_ROOMY);
    b.s.pace = (pace){.percent = 1, .decode_us = {1}, .prompt_us = 100};
    job j = bench_job(&b.m, 1, 0, 90, 3);
    bench_add(&b, &j);
    bench_step(&b);
    assert_int_equal(b.s.plan.n_tokens, 64);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_take_their_share_of_the_decoding_time),
        cmocka_unit_test(what_a_prompt_token_costs_is_learned_beside_others_too),
        cmocka_unit_test(company_of_another_size_has_its_own_time),
        cmocka_unit_test(a_pass_keeps_to_the_budget_while_others_decode),
        cmocka_unit_test(a_prompt_alone_takes_the_whole_pass),
    };
    return cmocka_run_group_tests(tests, bench_setup, bench_teardown);
}
