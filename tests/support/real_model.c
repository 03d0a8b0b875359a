// See real_model.h.
#include "tests/support/real_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "base/file.h"
#include "kernels/ops.h"
#include "tests/support/gguf_as_f32.h"
#include "tests/support/golden.h"
#include "tests/support/hf_writer.h"

#define FIXTURE "tests/fixtures/model/smollm2.json"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { MOST_PROMPTS = 1 }; // the rest takes minutes, and the tiny models run the same code
#else
enum { MOST_PROMPTS = 1000 };
#endif

static const char *model_path(void) {
    const char *path = getenv("TIERGATE_TEST_MODEL");
    return path ? path : "";
}

static model *open_model(const char *path) {
    model *m = NULL;
    err e = {0};
    if (model_open(path, NULL, &m, &e))
        fail_msg("%s", e.message);
    return m;
}

static model *open_float_copy(void) {
    char path[64];
    model *source = open_model(model_path());
    int fd = memfd_create("float copy", MFD_CLOEXEC);
    gguf_copy_as_f32(model_gguf(source), fd);
    model_close(source);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    model *m = open_model(path);
    close(fd);
    return m;
}

// The files may go once they are open.
static model *open_directory(void) {
    char path[] = "/tmp/tiergate-directory-XXXXXX";
    model *source = open_model(model_path());
    assert_non_null(mkdtemp(path));
    hf_write_model(source, path, WT_F32);
    model_close(source);
    model *m = open_model(path);
    hf_remove(path);
    return m;
}

static engine *open_engine(const model *m, const char *backend, const char *kv) {
    err e = {0};
    engine *g = NULL;
    engine_config c = {.backend = backend,
                       .n_threads = 1, // test programs run side by side: two would spin
                       .max_seqs = 2,
                       .max_context = 4096,
                       .max_rows = 256,
                       .kv_type = kv,
                       .kv_bytes = (size_t)512 << 20};
    if (engine_open(m, &c, &g, &e))
        fail_msg("%s", e.message);
    return g;
}

static void check_prompt(engine *g, const golden *k, const real_plan *p, golden_diff *all) {
    int n = k->n < p->most_tokens ? k->n : p->most_tokens;
    engine_sampled *scored = calloc((size_t)n, sizeof *scored);
    golden_diff d = {0};
    assert_true(golden_run(g, k, n, 256, scored, n == k->n));
    golden_compare(k, n, scored, &d);
    golden_compare(k, n, scored, all);
    free(scored);
    if (d.max > p->max)
        fail_msg("%s: a log-probability differs by %.4f", k->name, d.max);
}

static void need(const char *backend) {
    if (ops_supported(backend) && file_exists(model_path()))
        return;
    printf("skip: %s: %s\n", backend,
           ops_supported(backend) ? "no model file (make model-file)" : "this processor lacks it");
    skip();
}

void real_model_check(const real_plan *p) {
    need(p->backend);
    int n;
    int64_t start = clock_mono_ms();
    golden *prompts = goldens_read(FIXTURE, &n);
    model *m = p->directory ? open_directory()
               : p->floats  ? open_float_copy()
                            : open_model(model_path());
    engine *g = open_engine(m, p->backend, NULL);
    golden_diff all = {0};
    assert_true(n >= 12);
    for (int i = 0; i < n && i < MOST_PROMPTS; i++)
        check_prompt(g, &prompts[i], p, &all);
    printf("%-6s %s: %d log-probabilities, mean difference %.5f, max %.5f (%.1f s)\n", p->backend,
           p->directory ? "F32 directory"
           : p->floats  ? "F32 "
                        : "Q4_1",
           all.n, all.sum / all.n, all.max, (double)(clock_mono_ms() - start) / 1000);
    if (n <= MOST_PROMPTS) // the bound is on the mean over all prompts
        assert_true(all.sum / all.n <= p->mean);
    engine_close(g);
    model_close(m);
    goldens_free(prompts, n);
}

// The prompt's log-probabilities with float32 take the golden's place.
static void compare_kv(engine *exact, engine *g, golden *k, golden_diff *all) {
    int n = k->n < 64 ? k->n : 64;
    engine_sampled *scored = calloc((size_t)n, sizeof *scored);
    assert_true(golden_run(exact, k, n, 256, scored, false));
    for (int i = 0; i + 1 < n; i++)
        k->logprobs[i] = scored[i].logprob;
    assert_true(golden_run(g, k, n, 256, scored, false));
    golden_compare(k, n, scored, all);
    free(scored);
}

void real_model_check_kv(const char *kv, double mean, double max) {
    need("ref");
    int n;
    golden *prompts = goldens_read(FIXTURE, &n);
    model *m = open_float_copy();
    engine *exact = open_engine(m, NULL, "f32"), *g = open_engine(m, NULL, kv);
    golden_diff all = {0};
    assert_string_equal(engine_kv_name(g), kv);
    for (int i = 0; i < n && i < MOST_PROMPTS; i++)
        compare_kv(exact, g, &prompts[i], &all);
    printf("%s, KV %s to f32: %d log-probabilities, mean difference %.5f, max %.5f\n",
           engine_backend(g), kv, all.n, all.sum / all.n, all.max);
    assert_true(all.sum / all.n <= mean && all.max <= max);
    engine_close(g);
    engine_close(exact);
    model_close(m);
    goldens_free(prompts, n);
}

void real_model_check_kv_greedy(const char *kv) {
    need("ref");
    int n;
    golden *prompts = goldens_read(FIXTURE, &n);
    model *m = open_model(model_path());
    engine *g = open_engine(m, NULL, kv);
    engine_sampled scored[128];
    for (int i = 0; i < n && i < MOST_PROMPTS; i++)
        assert_true(prompts[i].n > 128 ||
                    golden_run(g, &prompts[i], prompts[i].n, 256, scored, true));
    engine_close(g);
    model_close(m);
    goldens_free(prompts, n);
}
