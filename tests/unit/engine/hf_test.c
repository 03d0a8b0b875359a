// Directories as transformers saves them (tests/fixtures/hf) against what transformers computes
// with them, on every backend this processor has: BF16, F16 and F32, one file and shards, tied and
// not, every RoPE scaling and architecture; AWQ and GPTQ directories against numpy's
// dequantisation.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/ops.h"
#include "tests/support/golden.h"

#define FIXTURES "tests/fixtures/hf/"

enum { N_MODELS = 11 };

static model *open_named(const char *name) {
    char path[128];
    err e = {0};
    model *m = NULL;
    snprintf(path, sizeof path, FIXTURES "%s", name);
    if (model_open(path, NULL, &m, &e))
        fail_msg("%s", e.message);
    return m;
}

// As tiny_test.c: integer products round activations to 8 bits.
static double tolerance(const char *name, const char *backend) {
    if (!strcmp(backend, "ref"))
        return 0.002;
    return !strncmp(name, "awq", 3) || !strncmp(name, "gptq", 4) ? 0.2 : 0.02;
}

static void check_golden(const golden *k, const char *backend) {
    err e = {0};
    engine *g = NULL;
    model *m = open_named(k->name);
    engine_config c = {
        .backend = backend, .n_threads = 2, .max_seqs = 2, .max_rows = 128, .kv_bytes = 8 << 20};
    if (engine_open(m, &c, &g, &e))
        fail_msg("%s on %s: %s", k->name, backend, e.message);
    engine_sampled scored[256];
    golden_diff d = {0};
    assert_true(golden_run(g, k, k->n, 40, scored, true));
    golden_compare(k, k->n, scored, &d);
    printf("%-6s %-24s log-probabilities: mean difference %.6f, max %.6f\n", backend, k->name,
           d.sum / d.n, d.max);
    assert_true(d.max < tolerance(k->name, backend));
    engine_close(g);
    model_close(m);
}

static void check_backend(const char *backend) {
    if (!ops_supported(backend)) {
        printf("skip: this processor has no %s\n", backend);
        skip();
    }
    int n;
    golden *all = goldens_read(FIXTURES "goldens.json", &n);
    assert_int_equal(n, N_MODELS);
    for (int i = 0; i < n; i++)
        check_golden(&all[i], backend);
    goldens_free(all, n);
}

static void directories_agree_with_transformers_on_ref(void **state) {
    (void)state;
    check_backend("ref");
}

static void directories_agree_with_transformers_on_avx2(void **state) {
    (void)state;
    check_backend("avx2");
}

static void directories_agree_with_transformers_on_avx512(void **state) {
    (void)state;
    check_backend("avx512");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directories_agree_with_transformers_on_ref),
        cmocka_unit_test(directories_agree_with_transformers_on_avx2),
        cmocka_unit_test(directories_agree_with_transformers_on_avx512),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
