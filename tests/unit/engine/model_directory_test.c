// The real model's float copy as a Hugging Face directory: as exact as the GGUF copy, so names,
// shapes, the rotation of llama's heads and the vocabulary are the same.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/support/real_model.h"

static void a_directory_agrees_on_avx2(void **state) {
    (void)state;
    real_model_check(&(real_plan){.backend = "avx2", REAL_DIRECTORY});
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_directory_agrees_on_avx2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
