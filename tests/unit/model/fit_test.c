// The sums of `tiergate fit` against what is published: parameters and KV bytes of the shapes.
#include "model/fit.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static const model_shape *shape(const char *name) {
    const char *full;
    const model_shape *s = fit_shape_find(name, &full);
    if (!s)
        fail_msg("no shape %s", name);
    return s;
}

// As the model cards and transformers' num_parameters() count them (tied matrices once).
static void shapes_have_the_published_number_of_parameters(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint64_t n;
    } published[] = {
        {"qwen2.5-0.5b", 494032768},    {"qwen2.5-1.5b", 1543714304}, {"qwen2.5-3b", 3085938688},
        {"qwen2.5-7b", 7615616512},     {"qwen2.5-14b", 14770033664}, {"qwen2.5-32b", 32763876352},
        {"qwen2.5-72b", 72706203648},   {"qwen3-0.6b", 596049920},    {"qwen3-8b", 8190735360},
        {"llama-3.2-1b", 1235814400},   {"llama-3.2-3b", 3212749824}, {"llama-3.1-8b", 8030261248},
        {"llama-3.1-70b", 70553706496}, {"smollm2-135m", 134515008},  {"smollm2-360m", 361821120},
        {"smollm2-1.7b", 1711376384},
    };
    for (size_t i = 0; i < sizeof published / sizeof *published; i++)
        if (fit_parameters(shape(published[i].name)) != published[i].n)
            fail_msg("%s has %llu parameters, not %llu", published[i].name,
                     (unsigned long long)fit_parameters(shape(published[i].name)),
                     (unsigned long long)published[i].n);
}

enum { F16 = 16 * 2 * 128 }; // of a page's keys in one head

static void kv_bytes_are_those_of_the_tiers(void **state) {
    (void)state;
    assert_int_equal(fit_compute(shape("7b"), 0, F16, 0, 1).kv_bytes_per_token, 57344);
    assert_int_equal(fit_compute(shape("14B"), 0, F16, 0, 1).kv_bytes_per_token, 196608);
    assert_int_equal(fit_compute(shape("72b"), 0, F16, 0, 1).kv_bytes_per_token, 327680);
    assert_int_equal(fit_compute(shape("7b"), 0, 16 * (128 + 2), 0, 1).kv_bytes_per_token, 29120);
}

static void memory_is_shared_between_weights_activations_and_whole_pages(void **state) {
    (void)state;
    const model_shape *s = shape("7b");
    uint64_t weights = 15231233024u, page = 57344 * 16;
    fit least = fit_compute(s, weights, F16, 0, 512);
    assert_false(least.fits);
    assert_int_equal(least.kv_tokens, 0);
    uint64_t base = weights + least.activation_bytes;
    assert_false(fit_compute(s, weights, F16, base + page - 1, 512).fits);
    fit one = fit_compute(s, weights, F16, base + page, 512);
    assert_true(one.fits);
    assert_int_equal(one.kv_tokens, 16);
    fit many = fit_compute(s, weights, F16, base + 257 * page + 5, 512);
    assert_int_equal(many.kv_tokens, 257 * 16);
    assert_int_equal(fit_requests(&many, 4096), 1);
    assert_int_equal(fit_requests(&many, 4097), 1);
    assert_int_equal(fit_requests(&many, 4113), 0);
    assert_int_equal(fit_requests(&many, 2048), 2);
    assert_int_equal(fit_requests(&many, 1), 257);
    assert_true(fit_compute(s, weights, F16, 0, 1024).activation_bytes > least.activation_bytes);
}

static void names_are_found_whatever_their_letters_and_others_are_not(void **state) {
    (void)state;
    const char *full;
    assert_non_null(fit_shape_find("Qwen2.5-7B", &full));
    assert_string_equal(full, "Qwen2.5-7B");
    assert_null(fit_shape_find("", &full));
    assert_null(fit_shape_find("9b", &full));
    assert_int_equal(fit_gpu_find("h100-80g")->memory_bytes, (uint64_t)81559 << 20);
    assert_null(fit_gpu_find("h100"));
    for (size_t i = 0; fit_gpu_at(i); i++)
        assert_ptr_equal(fit_gpu_find(fit_gpu_at(i)->name), fit_gpu_at(i));
    for (size_t i = 0; fit_shape_name(i); i++)
        assert_non_null(fit_shape_find(fit_shape_name(i), &full));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_have_the_published_number_of_parameters),
        cmocka_unit_test(kv_bytes_are_those_of_the_tiers),
        cmocka_unit_test(memory_is_shared_between_weights_activations_and_whole_pages),
        cmocka_unit_test(names_are_found_whatever_their_letters_and_others_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
