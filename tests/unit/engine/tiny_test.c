// Tiny random models of every architecture, RoPE scaling and weight format against Hugging Face
// transformers (tests/oracle), on every backend this processor has.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/secret.h"
#include "tests/support/golden.h"
#include "tests/support/tiny_model.h"

#define FIXTURE "tests/fixtures/model/tiny.json"

static const char *const backends[] = {"ref", "avx2", "avx512"};

static bool is_quantised(const tiny_model *t) {
    return t->type != WT_F32 && t->type != WT_F16 && t->type != WT_BF16;
}

// kernels.md: 0.05 where weights are floats. Integer products round activations to 8 bits; random
// weights magnify that more than trained ones.
static double tolerance(const tiny_model *t, const char *backend) {
    if (strcmp(backend, "ref") == 0)
        return 0.002;
    return is_quantised(t) ? 0.2 : 0.02;
}

static void hex_sha256(const tiny_model *t, char out[65]) {
    uint8_t sum[32];
    buf bytes = {0};
    tiny_model_bytes(t, &bytes);
    secret_sha256(bytes.data, bytes.len, sum);
    for (int i = 0; i < 32; i++)
        snprintf(out + (ptrdiff_t)2 * i, 3, "%02x", sum[i]);
    buf_release(&bytes);
}

static engine *open_tiny(const tiny_model *t, const char *backend, model **m) {
    err e = {0};
    engine *g = NULL;
    char path[64];
    int fd = tiny_model_file(t);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    engine_config c = {
        .backend = backend, .n_threads = 2, .max_seqs = 2, .max_rows = 128, .kv_bytes = 8 << 20};
    if (model_open(path, NULL, m, &e) || engine_open(*m, &c, &g, &e))
        fail_msg("%s on %s: %s", t->name, backend, e.message);
    close(fd);
    return g;
}

static void check_golden(const golden *k, const char *backend) {
    const tiny_model *t = tiny_model_find(k->name);
    model *m;
    assert_non_null(t);
    engine *g = open_tiny(t, backend, &m);
    engine_sampled scored[256];
    golden_diff d = {0};
    assert_true(golden_run(g, k, k->n, 40, scored, true));
    golden_compare(k, k->n, scored, &d);
    printf("%-6s %-12s log-probabilities: mean difference %.6f, max %.6f\n", backend, k->name,
           d.sum / d.n, d.max);
    assert_true(d.max < tolerance(t, backend));
    engine_close(g);
    model_close(m);
}

static void check_backend(const char *backend) {
    if (!ops_supported(backend)) {
        printf("skip: this processor has no %s\n", backend);
        skip();
    }
    int n;
    golden *all = goldens_read(FIXTURE, &n);
    assert_int_equal(n, n_tiny_models);
    for (int i = 0; i < n; i++)
        check_golden(&all[i], backend);
    goldens_free(all, n);
}

static void goldens_are_of_the_models_that_we_make(void **state) {
    (void)state;
    int n;
    golden *all = goldens_read(FIXTURE, &n);
    for (int i = 0; i < n; i++) {
        char sum[65];
        hex_sha256(tiny_model_find(all[i].name), sum);
        assert_string_equal(sum, all[i].sha256);
    }
    goldens_free(all, n);
}

// What `tiergate fit` adds up is what the engine keeps, but for a few bytes a row and a page a
// matrix.
static void packed_bytes_are_known_before_packing(void **state) {
    (void)state;
    if (!ops_supported("avx2"))
        skip();
    for (int i = 0; i < n_tiny_models; i++) {
        model *m;
        uint64_t sum = 0;
        engine *g = open_tiny(&tiny_models[i], "avx2", &m);
        size_t n = gguf_n_tensors(model_gguf(m));
        for (size_t k = 0; k < n; k++) {
            const gguf_tensor *t = gguf_tensor_at(model_gguf(m), k);
            sum += t->n_dims == 1 ? t->dims[0] * sizeof(float)
                                  : weight_packed_bytes((weight_type)t->type, (int64_t)t->dims[1],
                                                        (int64_t)t->dims[0]);
        }
        assert_in_range(engine_weight_bytes(g), sum - 1024,
                        sum + n * 8192); // rope_freqs is not kept
        engine_close(g);
        model_close(m);
    }
}

static void every_tiny_model_agrees_on_ref(void **state) {
    (void)state;
    check_backend(backends[0]);
}

static void every_tiny_model_agrees_on_avx2(void **state) {
    (void)state;
    check_backend(backends[1]);
}

static void every_tiny_model_agrees_on_avx512(void **state) {
    (void)state;
    check_backend(backends[2]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens_are_of_the_models_that_we_make),
        cmocka_unit_test(packed_bytes_are_known_before_packing),
        cmocka_unit_test(every_tiny_model_agrees_on_ref),
        cmocka_unit_test(every_tiny_model_agrees_on_avx2),
        cmocka_unit_test(every_tiny_model_agrees_on_avx512),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
