// Matrix products of the CPU backends: against the reference in double, against an integer
// reference bit by bit, and the promise that a row's bits depend on nothing but the row.
#include "tests/kernels/support.h"

typedef struct problem {
    matrix parts[3];
    weight_source sources[3];
    int n_parts, n_rows;
    int64_t n_in, n_out;
    float *x, *bias;
} problem;

static problem random_problem(const weight_type *types, int n_parts, int n_rows, int64_t n_in,
                              int n_out) {
    problem p = {.n_parts = n_parts, .n_rows = n_rows, .n_in = n_in};
    for (int i = 0; i < n_parts; i++) {
        p.parts[i] = random_matrix(types[i], n_out + 5 * i, n_in);
        p.sources[i] = p.parts[i].source;
        p.n_out += n_out + 5 * i;
    }
    p.x = random_floats((size_t)n_rows * (size_t)n_in, 2);
    p.bias = random_floats((size_t)p.n_out, 1);
    return p;
}

static void release(problem *p) {
    for (int i = 0; i < p->n_parts; i++)
        free(p->parts[i].data);
    free(p->x);
    free(p->bias);
}

// y[n_rows, n_out] by o, with y's rows 3 floats apart more than needed; those floats must stay.
static float *multiply(ops *o, const problem *p, const float *bias) {
    int64_t stride = p->n_out + 3;
    float *y = malloc((size_t)p->n_rows * (size_t)stride * sizeof *y),
          *packed = malloc((size_t)p->n_rows * (size_t)p->n_out * sizeof *y);
    for (int64_t i = 0; i < p->n_rows * stride; i++)
        y[i] = 777;
    weight *w = pack(o, p->sources, p->n_parts);
    o->matmul(o, &(matmul_args){.w = w,
                                .x = p->x,
                                .y = y,
                                .bias = bias,
                                .n_rows = p->n_rows,
                                .x_stride = p->n_in,
                                .y_stride = stride});
    for (int r = 0; r < p->n_rows; r++) {
        memcpy(packed + r * p->n_out, y + r * stride, (size_t)p->n_out * sizeof *y);
        for (int i = 0; i < 3; i++)
            assert_true(y[r * stride + p->n_out + i] == 777);
    }
    o->weight_free(o, w);
    free(y);
    return packed;
}

static bool is_float_type(weight_type t) { return t == WT_F32 || t == WT_F16 || t == WT_BF16; }

static int64_t random_width(weight_type t) {
    int values = 1, bytes = 0;
    weight_type_block(t, &values, &bytes);
    return values == 1 ? random_int(1, 300) : values * random_int(1, values == 32 ? 19 : 5);
}

static void check_against_ref(ops *o, ops *ref, const problem *p, bool floats) {
    float *y = multiply(o, p, p->bias), *want = multiply(ref, p, p->bias);
    size_t n = (size_t)p->n_rows * (size_t)p->n_out;
    if (floats) {
        assert_within(sqrt(nmse(y, want, n)), 1e-6);
        assert_within(largest_error(y, want, n), 4e-6);
    } else {
        assert_within(nmse(y, want, n), 5e-4);
    }
    free(y);
    free(want);
}

static void every_format_agrees_with_the_reference(void **state) {
    (void)state;
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < N_TYPES * ROUNDS; i++) {
            weight_type t = all_types[i % N_TYPES];
            problem p =
                random_problem(&t, 1, random_int(1, 40), random_width(t), random_int(1, 70));
            check_against_ref(o, ref, &p, is_float_type(t));
            release(&p);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

static void stacked_matrices_may_differ_in_type_and_height(void **state) {
    (void)state;
    static const weight_type mixes[][3] = {{WT_Q4_K, WT_Q4_K, WT_Q6_K},
                                           {WT_Q5_0, WT_Q8_0, WT_F16},
                                           {WT_F32, WT_Q4_1, WT_BF16},
                                           {WT_Q5_K, WT_Q5_1, WT_Q4_0}};
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < 4; i++) {
            problem p = random_problem(mixes[i], 3, random_int(1, 20), 512, random_int(1, 37));
            check_against_ref(o, ref, &p, false);
            release(&p);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

// ---- inputs in another order (GPTQ's act-order)

static int32_t *random_order(int64_t n) {
    int32_t *order = malloc((size_t)n * sizeof *order);
    for (int64_t i = 0; i < n; i++)
        order[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t k = random_int(0, (int)i);
        int32_t was = order[i];
        order[i] = order[k];
        order[k] = was;
    }
    return order;
}

static void inputs_in_another_order_agree_with_the_reference(void **state) {
    (void)state;
    static const weight_type types[] = {WT_INT4, WT_BF16, WT_INT4};
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < 6; i++) {
            problem p = random_problem(types, 3, random_int(1, 40), 32 * random_int(1, 9),
                                       random_int(1, 37));
            int32_t *order = random_order(p.n_in);
            p.sources[0].order = p.sources[2].order = order;
            check_against_ref(o, ref, &p, false);
            free(order);
            release(&p);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

static void one_stack_has_one_order_and_only_int4_has_any(void **state) {
    (void)state;
    static const weight_type types[] = {WT_INT4, WT_INT4, WT_Q4_0};
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        if (!o)
            continue;
        problem p = random_problem(types, 3, 1, 64, 16);
        int32_t *one = random_order(64), *other = random_order(64);
        weight *w = NULL;
        err e = {0};
        p.sources[0].order = one;
        p.sources[1].order = other;
        assert_int_equal(o->weight_pack(o, p.sources, 2, &w, &e), -1);
        assert_non_null(strstr(e.message, "in different orders"));
        p.sources[1].order = NULL;
        assert_int_equal(o->weight_pack(o, p.sources, 2, &w, &e), -1);
        p.sources[2].order = one;
        assert_int_equal(o->weight_pack(o, p.sources + 2, 1, &w, &e), -1);
        assert_non_null(strstr(e.message, "Q4_0 weights have no order"));
        free(one);
        free(other);
        release(&p);
        o->close(o);
    }
}

// ---- the integer reference: the same rounding of activations, exact integers, floats in the
// promised order.
typedef struct column {
    int8_t codes[32];
    float scale;
} column;

static column quantise(const float *x) {
    column c = {.scale = 0};
    float largest = 0;
    for (int i = 0; i < 32; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    float inverse = largest < 1e-30f ? 0 : 127 / largest;
    for (int i = 0; i < 32; i++)
        c.codes[i] = (int8_t)nearbyintf(x[i] * inverse);
    c.scale = largest < 1e-30f ? 0 : largest / 127;
    return c;
}

// To the 11 bits of fp16, without its narrow range.
static float eleven_bits(float v) {
    int exponent;
    float m = frexpf(v, &exponent);
    return ldexpf(f16_to_f32(f32_to_f16(m)), exponent);
}

static bool has_min(weight_type t) {
    return t == WT_Q4_1 || t == WT_Q5_1 || t == WT_Q4_K || t == WT_Q5_K || t == WT_INT4;
}

static float integer_dot(const weight_source *w, int64_t row, const float *x) {
    const uint8_t *data = (const uint8_t *)w->data + (size_t)row * row_bytes(w->type, w->n_in);
    float sum = 0;
    for (int64_t g = 0; g < w->n_in / 32; g++) {
        quant_group q;
        quant_group_read(w->type, data, g, &q);
        column c = quantise(x + 32 * g);
        int32_t dot[2] = {0}, total = 0;
        for (int i = 0; i < 32; i++) {
            dot[i / 16] += q.code[i] * c.codes[i];
            total += c.codes[i];
        }
        if (w->type == WT_Q6_K) {
            for (int i = 0; i < 2; i++)
                sum = fmaf((float)dot[i] * c.scale, eleven_bits(q.scale[i]), sum);
        } else {
            sum = fmaf((float)(dot[0] + dot[1]) * c.scale, eleven_bits(q.scale[0]), sum);
        }
        if (has_min(w->type))
            sum =
                fmaf(c.scale * (float)total, w->type == WT_INT4 ? q.min : eleven_bits(q.min), sum);
    }
    return sum;
}

static void quantised_products_equal_an_integer_reference_bit_by_bit(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        for (int i = 0; o && i < N_TYPES * ROUNDS / 2; i++) {
            weight_type t = all_types[i % N_TYPES];
            if (is_float_type(t))
                continue;
            problem p =
                random_problem(&t, 1, random_int(1, 23), random_width(t), random_int(1, 40));
            memset(p.x, 0, 32 * sizeof *p.x); // a group of zeros
            for (int k = 0; k < 32; k++)      // extremes
                p.x[p.n_in - 32 + k] = k & 1 ? 3 : -3;
            float *y = multiply(o, &p, NULL);
            for (int r = 0; r < p.n_rows; r++)
                for (int64_t j = 0; j < p.n_out; j++) {
                    float want = integer_dot(&p.sources[0], j, p.x + r * p.n_in);
                    if (y[r * p.n_out + j] != want)
                        fail_msg("%s %s row %d output %d: %.9g, not %.9g", o->name,
                                 weight_type_name(t), r, (int)j, (double)y[r * p.n_out + j],
                                 (double)want);
                }
            free(y);
            release(&p);
        }
        if (o)
            o->close(o);
    }
}

// Codes at their limits: sums that a wrong int16 bound or a saturating step would break.
static void extreme_codes_do_not_overflow(void **state) {
    (void)state;
    static const uint8_t fills[] = {0x00, 0xff, 0x80, 0x7f};
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        for (int i = 0; o && i < N_TYPES * 4; i++) {
            weight_type t = all_types[i % N_TYPES];
            if (is_float_type(t))
                continue;
            problem p = random_problem(&t, 1, 9, 256, 16);
            memset(p.parts[0].data + 1, fills[i / N_TYPES], row_bytes(t, 256) * 16);
            int values = 1, bytes = 0;
            weight_type_block(t, &values, &bytes);
            for (int64_t k = 0; k < 16 * 256 / values; k++) {
                uint8_t *block = p.parts[0].data + 1 + k * bytes;
                put_f16(t == WT_Q6_K ? block + 208 : block, 0.5f);
                if (has_min(t))
                    put_f16(block + 2, 0.25f);
            }
            for (int k = 0; k < 9 * 256; k++)
                p.x[k] = k / 256 & 1 ? (k & 1 ? 1 : -1) : (k / 512 & 1 ? 1 : -1);
            float *y = multiply(o, &p, NULL);
            for (int r = 0; r < 9; r++)
                for (int j = 0; j < 16; j++)
                    assert_true(y[r * 16 + j] == integer_dot(&p.sources[0], j, p.x + r * 256));
            free(y);
            release(&p);
        }
        if (o)
            o->close(o);
    }
}

static void a_row_alone_gives_the_bits_it_gives_in_company(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < N_TYPES * 2; i++) {
            weight_type t = all_types[i % N_TYPES];
            problem p = random_problem(&t, 1, i < N_TYPES ? random_int(17, 90) : random_int(2, 16),
                                       random_width(t), random_int(1, 150));
            float *y = multiply(o, &p, p.bias);
            for (int r = 0; r < p.n_rows; r += random_int(1, 7)) {
                problem one = p;
                one.n_rows = 1;
                one.x = p.x + r * p.n_in;
                float *alone = multiply(o, &one, p.bias);
                assert_memory_equal(alone, y + r * p.n_out, (size_t)p.n_out * sizeof *y);
                free(alone);
            }
            free(y);
            release(&p);
        }
        if (o)
            o->close(o);
    }
}

static void thread_count_and_instruction_set_change_no_bit(void **state) {
    (void)state;
    for (int i = 0; i < N_TYPES * 2; i++) {
        weight_type t = all_types[i % N_TYPES];
        problem p =
            random_problem(&t, 1, i < N_TYPES ? 70 : random_int(1, 16), random_width(t), 261);
        float *first = NULL;
        for (int b = 0; b < N_BACKENDS * 3; b++) {
            ops *o = open_backend(b / 3, b % 3 + 1);
            if (!o)
                continue;
            float *y = multiply(o, &p, p.bias);
            if (first)
                assert_memory_equal(y, first, (size_t)p.n_rows * (size_t)p.n_out * sizeof *y);
            else
                first = y;
            if (y != first)
                free(y);
            o->close(o);
        }
        free(first);
        release(&p);
    }
}

static void what_cannot_be_packed_is_refused_by_name(void **state) {
    (void)state;
    float data[64] = {0};
    ops *all[1 + N_BACKENDS] = {open_ref()};
    for (int b = 0; b < N_BACKENDS; b++)
        all[1 + b] = open_backend(b, 1);
    for (int i = 0; i <= N_BACKENDS; i++) {
        ops *o = all[i];
        if (!o)
            continue;
        weight *w = NULL;
        err e = {0};
        weight_source narrow = {"blk.0.ffn_up.weight", WT_Q4_0, data, 2, 48, NULL},
                      strange = {"blk.1.attn_q.weight", (weight_type)20, data, 1, 32, NULL},
                      pair[2] = {{"a", WT_F32, data, 1, 32, NULL},
                                 {"other", WT_F32, data, 1, 16, NULL}};
        assert_int_equal(o->weight_pack(o, &narrow, 1, &w, &e), -1);
        assert_int_equal(e.code, ERR_UNSUPPORTED);
        assert_non_null(strstr(e.message, "blk.0.ffn_up.weight"));
        assert_int_equal(o->weight_pack(o, &strange, 1, &w, &e), -1);
        assert_non_null(strstr(e.message, "blk.1.attn_q.weight"));
        assert_int_equal(o->weight_pack(o, pair, 2, &w, &e), -1);
        assert_non_null(strstr(e.message, "other"));
        assert_null(w);
        o->close(o);
    }
}

static void embedding_rows_are_the_dequantised_rows(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2), *ref = open_ref();
        for (int i = 0; o && i < N_TYPES; i++) {
            weight_type t = all_types[i];
            int64_t dim = is_float_type(t) ? 77 : 512;
            matrix m = random_matrix(t, 53, dim);
            int32_t ids[5] = {0, 52, 16, 15, 31};
            float y[5 * 512], want[5 * 512];
            weight *w = pack(o, &m.source, 1), *v = pack(ref, &m.source, 1);
            o->embed(o, &(embed_args){w, ids, y, 5, 1.5f});
            ref->embed(ref, &(embed_args){v, ids, want, 5, 1.5f});
            assert_within(sqrt(nmse(y, want, (size_t)(5 * dim))), 0x1p-11);
            if (is_float_type(t) || t == WT_Q8_0 || t == WT_Q4_0)
                assert_within(largest_error(y, want, (size_t)(5 * dim)), 1e-6);
            o->weight_free(o, w);
            ref->weight_free(ref, v);
            free(m.data);
        }
        if (o)
            o->close(o);
        ref->close(ref);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_agrees_with_the_reference),
        cmocka_unit_test(stacked_matrices_may_differ_in_type_and_height),
        cmocka_unit_test(inputs_in_another_order_agree_with_the_reference),
        cmocka_unit_test(one_stack_has_one_order_and_only_int4_has_any),
        cmocka_unit_test(quantised_products_equal_an_integer_reference_bit_by_bit),
        cmocka_unit_test(extreme_codes_do_not_overflow),
        cmocka_unit_test(a_row_alone_gives_the_bits_it_gives_in_company),
        cmocka_unit_test(thread_count_and_instruction_set_change_no_bit),
        cmocka_unit_test(what_cannot_be_packed_is_refused_by_name),
        cmocka_unit_test(embedding_rows_are_the_dequantised_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
