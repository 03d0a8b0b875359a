// Runs the kernel tests on the AVX-512 sources that were compiled for AVX2 through SIMDe
// (mk/kernels.mk), so that a machine without AVX-512 tests them as well. The programs stand in
// build/emulated; without SIMDe or clang-14 there are none.
#include "tests/kernels/support.h"
#include <sys/wait.h>
#include <unistd.h>

static void emulated_avx512_passes(const char *name) {
    char path[512], line[256], self[256];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    for (int up = 0; up < 3; up++) // from unit/kernels/emulated_test
        *strrchr(self, '/') = 0;
    snprintf(path, sizeof path - 8, "%s/emulated/%s", self, name);
    if (access(path, X_OK)) {
        printf("skip: %s was not built (needs libsimde-dev and clang-14)\n", path);
        return;
    }
    if (!ops_supported("avx2")) {
        printf("skip: this processor has no avx2\n");
        return;
    }
    strcat(path, " 2>&1");
    FILE *f = popen(path, "r");
    assert_non_null(f);
    char tail[4096] = "";
    while (fgets(line, sizeof line, f))
        if (strlen(tail) + strlen(line) < sizeof tail)
            strcat(tail, line);
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("%s failed:\n%s", name, tail);
}

static void emulated_avx512_passes_the_matmul_tests(void **state) {
    (void)state;
    emulated_avx512_passes("matmul_test");
}

static void emulated_avx512_passes_the_attention_tests(void **state) {
    (void)state;
    emulated_avx512_passes("attention_test");
}

static void emulated_avx512_passes_the_row_tests(void **state) {
    (void)state;
    emulated_avx512_passes("rows_test");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(emulated_avx512_passes_the_matmul_tests),
        cmocka_unit_test(emulated_avx512_passes_the_attention_tests),
        cmocka_unit_test(emulated_avx512_passes_the_row_tests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
