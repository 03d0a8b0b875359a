// Frequencies against numbers that Hugging Face transformers 5.23 computes for real models'
// settings.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <cmocka.h>
#include "engine/rope.h"

typedef struct known {
    int pair;
    double frequency;
} known;

static void check(const model_shape *s, const known *k, int n, double attn_scale) {
    float freq[ROPE_MAX_HEAD_DIM / 2], scale;
    rope_frequencies(s, NULL, freq, &scale);
    assert_true(fabs((double)scale - attn_scale) < 1e-6);
    for (int i = 0; i < n; i++)
        assert_true(fabs((double)freq[k[i].pair] / k[i].frequency - 1) < 3e-6);
}

static void without_scaling_a_pair_turns_by_its_power_of_the_base(void **state) {
    (void)state;
    const model_shape s = {.head_dim = 64, .rope_base = 10000};
    const known k[] = {{0, 1}, {1, pow(1e4, -1.0 / 32)}, {16, 0.01}, {31, pow(1e4, -31.0 / 32)}};
    check(&s, k, 4, 1);
}

static void linear_scaling_divides_every_frequency(void **state) {
    (void)state;
    const model_shape s = {
        .head_dim = 64, .rope_base = 10000, .scaling = ROPE_LINEAR, .rope_factor = 4};
    const known k[] = {{0, 0.25}, {16, 0.0025}};
    check(&s, k, 2, 1);
}

// Llama 3.2 1B.
static void llama3_scaling_equals_transformers(void **state) {
    (void)state;
    const model_shape s = {.head_dim = 64,
                           .rope_base = 500000,
                           .scaling = ROPE_LLAMA3,
                           .rope_factor = 32,
                           .rope_original_context = 8192};
    const known k[] = {{0, 1},
                       {1, 0.663601279},
                       {8, 0.0376060307},
                       {12, 0.00729266508},
                       {14, 0.00321144611},
                       {15, 0.00129054801},
                       {16, 0.000429556705},
                       {17, 9.70828623e-05},
                       {18, 1.94616387e-05},
                       {20, 8.57025589e-06},
                       {31, 9.41830649e-08}};
    check(&s, k, 11, 1);
}

// Qwen2.5 7B past 32k.
static void yarn_equals_transformers(void **state) {
    (void)state;
    const model_shape s = {.head_dim = 128,
                           .rope_base = 1000000,
                           .scaling = ROPE_YARN,
                           .rope_factor = 4,
                           .rope_attn_factor = 1,
                           .rope_original_context = 32768};
    const known k[] = {{0, 1},
                       {1, 0.805842221},
                       {16, 0.0316227786},
                       {24, 0.00537532149},
                       {26, 0.00316842273},
                       {30, 0.00106436096},
                       {34, 0.000334240554},
                       {38, 9.26230132e-05},
                       {40, 4.44569851e-05},
                       {44, 1.87473561e-05},
                       {63, 3.10234441e-07}};
    check(&s, k, 11, 1.13862944);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_scaling_a_pair_turns_by_its_power_of_the_base),
        cmocka_unit_test(linear_scaling_divides_every_frequency),
        cmocka_unit_test(llama3_scaling_equals_transformers),
        cmocka_unit_test(yarn_equals_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
