// The real model with 8-bit keys and values against the same with float32.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/support/real_model.h"

static void eight_bits_change_log_probabilities_little(void **state) {
    (void)state;
    real_model_check_kv("q8", 0.06, 0.7); // seen: 0.044, 0.48
}

static void eight_bits_decode_what_the_goldens_say(void **state) {
    (void)state;
    real_model_check_kv_greedy("q8");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_bits_change_log_probabilities_little),
        cmocka_unit_test(eight_bits_decode_what_the_goldens_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
