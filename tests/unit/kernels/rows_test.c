// RMSNorm and SwiGLU of the CPU backends against the reference, at widths that are no multiple of a
// register, and their invariance.
#include "tests/kernels/support.h"

static void rmsnorm_agrees_with_the_reference(void **state) {
    (void)state;
    static const int dims[] = {1, 7, 16, 17, 61, 576, 1021, 4096};
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < 16; i++) {
            int dim = dims[i % 8], rows = random_int(1, 40);
            size_t n = (size_t)(rows * dim);
            bool add = i & 1;
            float *x = random_floats(n, 3), *more = random_floats(n, 1),
                  *gain = random_floats((size_t)dim, 2);
            float *x2 = malloc(n * 4), *y = malloc(n * 4), *want = malloc(n * 4);
            memcpy(x2, x, n * 4);
            o->rmsnorm(o, &(rmsnorm_args){x, add ? more : NULL, gain, y, rows, dim, 1e-5f});
            ref->rmsnorm(ref, &(rmsnorm_args){x2, add ? more : NULL, gain, want, rows, dim, 1e-5f});
            assert_memory_equal(x, x2, n * 4); // the residual stream: one rounding each, so equal
            assert_within(sqrt(nmse(y, want, n)), 1e-6);
            assert_within(largest_error(y, want, n), 2e-6);
            o->rmsnorm(o, &(rmsnorm_args){x, NULL, gain, x, rows, dim, 1e-5f}); // in place
            ref->rmsnorm(ref, &(rmsnorm_args){x2, NULL, gain, x2, rows, dim, 1e-5f});
            assert_within(largest_error(x, x2, n), 2e-6);
            free(x), free(more), free(gain), free(x2), free(y), free(want);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

static void swiglu_is_accurate_over_the_whole_range(void **state) {
    (void)state;
    ops *ref = open_ref();
    enum { WIDTH = 4099, ROWS = 3 };
    float *x = malloc(ROWS * 2 * WIDTH * 4), *y = malloc(ROWS * WIDTH * 4),
          *want = malloc(ROWS * WIDTH * 4);
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        if (!o)
            continue;
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < WIDTH; i++) {
                x[r * 2 * WIDTH + i] = ((float)i / WIDTH - 0.5f) * (r == 0   ? 20
                                                                    : r == 1 ? 170
                                                                             : 500);
                x[r * 2 * WIDTH + WIDTH + i] = 1;
            }
        o->swiglu(o, &(swiglu_args){x, y, ROWS, WIDTH});
        ref->swiglu(ref, &(swiglu_args){x, want, ROWS, WIDTH});
        for (int i = 0; i < ROWS * WIDTH;
             i++) { // each value by itself: the exponential is good to 1e-6 of its value
            double d = fabs((double)y[i] - want[i]);
            if (!(d <= 1e-6 * fabs((double)want[i]) + 1e-35))
                fail_msg("%s: silu(%g) = %g, not %g", o->name,
                         (double)x[i / WIDTH * 2 * WIDTH + i % WIDTH], (double)y[i],
                         (double)want[i]);
        }
        o->close(o);
    }
    free(x), free(y), free(want);
    ref->close(ref);
}

static void rows_do_not_depend_on_company_threads_or_instruction_set(void **state) {
    (void)state;
    enum { ROWS = 37, DIM = 2053 };
    float *x = random_floats(ROWS * 2 * DIM, 5), *gain = random_floats(DIM, 1), *norm = NULL,
          *glu = NULL;
    for (int b = 0; b < N_BACKENDS * 3; b++) {
        ops *o = open_backend(b / 3, b % 3 + 1);
        if (!o)
            continue;
        float *n = malloc(ROWS * DIM * 4), *g = malloc(ROWS * DIM * 4), one[DIM];
        o->rmsnorm(o, &(rmsnorm_args){x, NULL, gain, n, ROWS, DIM, 1e-6f});
        o->swiglu(o, &(swiglu_args){x, g, ROWS, DIM});
        for (int r = 0; r < ROWS; r += 5) {
            o->rmsnorm(o, &(rmsnorm_args){x + r * DIM, NULL, gain, one, 1, DIM, 1e-6f});
            assert_memory_equal(one, n + r * DIM, sizeof one);
            o->swiglu(o, &(swiglu_args){x + r * 2 * DIM, one, 1, DIM});
            assert_memory_equal(one, g + r * DIM, sizeof one);
        }
        if (norm) {
            assert_memory_equal(n, norm, ROWS * DIM * 4);
            assert_memory_equal(g, glu, ROWS * DIM * 4);
            free(n), free(g);
        } else {
            norm = n, glu = g;
        }
        o->close(o);
    }
    free(x), free(gain), free(norm), free(glu);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_agrees_with_the_reference),
        cmocka_unit_test(swiglu_is_accurate_over_the_whole_range),
        cmocka_unit_test(rows_do_not_depend_on_company_threads_or_instruction_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
