// The real model and its float copy on the AVX-512 backend.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/support/real_model.h"

static void avx512_agrees_on_q4_1(void **state) {
    (void)state;
    real_model_check(&(real_plan){.backend = "avx512", REAL_INTEGERS});
}

static void avx512_agrees_on_floats(void **state) {
    (void)state;
    real_model_check(&(real_plan){.backend = "avx512", REAL_FLOATS});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(avx512_agrees_on_q4_1),
        cmocka_unit_test(avx512_agrees_on_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
