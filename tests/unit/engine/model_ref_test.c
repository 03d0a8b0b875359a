// The real model on the reference backend, which is slow: it takes the first tokens of each prompt
// only.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/support/real_model.h"

static void the_reference_agrees_on_q4_1(void **state) {
    (void)state;
    real_model_check(
        &(real_plan){.backend = "ref", .most_tokens = 96, .mean = 0.0001, .max = 0.001});
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_reference_agrees_on_q4_1)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
