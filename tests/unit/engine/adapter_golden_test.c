// Adapters as PEFT saved them, read and applied on the tiny models of tests/fixtures/hf, against
// what PEFT computed with them, on every backend.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "model/adapter.h"
#include "tests/support/golden.h"
#include "tests/support/tiny_engine.h"

#define FIXTURES "tests/fixtures/adapter/"

static const char *const bases[][2] = {{"llama-all", "llama-bf16"},
                                       {"llama-ranks", "llama-bf16"},
                                       {"qwen2-rslora", "qwen2-f32-tied"},
                                       {"qwen3-one-layer", "qwen3-bf16"}};

static const char *base_of(const char *adapter) {
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++)
        if (!strcmp(bases[i][0], adapter))
            return bases[i][1];
    fail_msg("no base of %s", adapter);
    return NULL;
}

static engine_adapter *read_adapter(tiny_engine *f, const char *name) {
    char path[128];
    buf bytes = {0};
    gguf *file = NULL;
    engine_adapter *a = NULL;
    err e = {0};
    snprintf(path, sizeof path, FIXTURES "%s", name);
    if (adapter_read(path, model_get_shape(f->m), &bytes, &e) ||
        gguf_open_memory(bytes.data, bytes.len, &file, &e) ||
        engine_adapter_open(f->g, file, &a, &e))
        fail_msg("%s: %s", name, e.message);
    gguf_close(file);
    buf_release(&bytes);
    return a;
}

// The largest difference of a log-probability over prompt and answer; the tokens must be the same.
static double compare(engine *g, const engine_adapter *a, const golden *k) {
    sampling_params p = greedy_params(5);
    engine_seq *s = tiny_seq(g, &p, k->ids, k->n, 0, NULL);
    engine_seq_adapt(s, a);
    engine_row row = {
        .seq = s, .tokens = k->ids, .n = k->n, .sample = true, .prompt_logprobs = true};
    const engine_result *r = tiny_step(g, &row, 1);
    double worst = 0;
    for (int i = 0; i + 1 < k->n; i++)
        worst = fmax(worst, fabs((double)r->prompt[0][i].logprob - (double)k->logprobs[i]));
    for (int i = 0; i < k->n_greedy; i++) {
        engine_sampled one = r->sampled[0];
        assert_int_equal(one.id, k->greedy[i]);
        worst = fmax(worst, fabs((double)one.logprob - (double)k->top_logprobs[5 * i]));
        row = (engine_row){.seq = s, .tokens = &one.id, .n = 1, .sample = true};
        r = tiny_step(g, &row, 1);
    }
    engine_seq_free(g, s);
    return worst;
}

static void adapters_give_what_peft_gives(void **state) {
    int n;
    golden *all = goldens_read(FIXTURES "goldens.json", &n);
    assert_int_equal(n, sizeof bases / sizeof *bases);
    tiny_need(*state);
    for (int i = 0; i < n; i++) {
        char path[128];
        tiny_engine f = {0};
        engine_config c = tiny_config(*state, 2);
        err e = {0};
        snprintf(path, sizeof path, "tests/fixtures/hf/%s", base_of(all[i].name));
        if (model_open(path, NULL, &f.m, &e) || engine_open(f.m, &c, &f.g, &e))
            fail_msg("%s", e.message);
        engine_adapter *a = read_adapter(&f, all[i].name);
        double worst = compare(f.g, a, &all[i]);
        if (worst > (strcmp(*state, "ref") ? 2e-2 : 2e-4)) // ref is in double precision
            fail_msg("%s: a log-probability differs by %g", all[i].name, worst);
        engine_adapter_close(a);
        tiny_engine_close(&f);
    }
    goldens_free(all, n);
}

int main(void) {
    const struct CMUnitTest tests[] = {ALL(adapters_give_what_peft_gives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
