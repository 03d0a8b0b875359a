// Dequantisation against what the gguf package makes of the same blocks
// (tests/oracle/gen_quant_goldens.py), bit by bit, and the 16-bit conversions against every value
// there is.
#include "tests/kernels/support.h"

typedef struct golden {
    uint32_t n_bytes, n_values;
    uint8_t *blocks;
    float *values;
} golden;

static golden load(const char *name) {
    char path[128];
    golden g = {0};
    snprintf(path, sizeof path, "tests/fixtures/quants/%s.bin", name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s is missing (tests run from the repository's root)", path);
    assert_int_equal(fread(&g.n_bytes, 4, 1, f), 1);
    assert_int_equal(fread(&g.n_values, 4, 1, f), 1);
    g.blocks = malloc(g.n_bytes + 1);
    g.values = malloc(g.n_values * sizeof(float));
    assert_int_equal(fread(g.blocks + 1, 1, g.n_bytes, f), g.n_bytes); // off alignment
    assert_int_equal(fread(g.values, 4, g.n_values, f), g.n_values);
    fclose(f);
    return g;
}

static void every_format_gives_the_bits_of_the_gguf_package(void **state) {
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        weight_type t = all_types[i];
        if (t == WT_INT4) // ours: an_int4_value_is_scale_times_code_minus_zero
            continue;
        golden g = load(weight_type_name(t));
        assert_int_equal(row_bytes(t, g.n_values), g.n_bytes);
        float *y = malloc(g.n_values * sizeof *y);
        weight_dequantize(t, g.blocks + 1, y, g.n_values);
        for (uint32_t k = 0; k < g.n_values; k++)
            if (y[k] != g.values[k])
                fail_msg("%s value %u: %.9g, not %.9g", weight_type_name(t), k, (double)y[k],
                         (double)g.values[k]);
        free(y);
        free(g.blocks);
        free(g.values);
    }
}

static void an_int4_value_is_scale_times_code_minus_zero(void **state) {
    (void)state;
    matrix m = random_matrix(WT_INT4, 3, 96);
    const uint8_t *block = m.source.data;
    float y[3 * 96];
    weight_dequantize(WT_INT4, block, y, 3 * 96);
    for (int i = 0; i < 3 * 96; i++) {
        const uint8_t *b = block + i / 32 * 20;
        int code = i % 32 < 16 ? b[4 + i % 16] & 15 : b[4 + i % 16] >> 4;
        uint16_t half = (uint16_t)(b[0] | b[1] << 8);
        assert_true((double)y[i] == (double)f16_to_f32(half) * (code - b[2]));
    }
    free(m.data);
}

static void a_part_of_a_row_dequantises_like_the_whole(void **state) {
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        matrix m = random_matrix(all_types[i], 1, 1024);
        float whole[1024], part[256];
        weight_dequantize(all_types[i], m.source.data, whole, 1024);
        for (int at = 0; at < 1024; at += 256) {
            const uint8_t *p = (const uint8_t *)m.source.data + row_bytes(all_types[i], at);
            weight_dequantize(all_types[i], p, part, 256);
            assert_memory_equal(part, whole + at, sizeof part);
        }
        free(m.data);
    }
}

static void unknown_types_have_no_block_and_no_name(void **state) {
    (void)state;
    int n, b;
    assert_false(weight_type_block((weight_type)10, &n, &b)); // Q2_K
    assert_string_equal(weight_type_name((weight_type)10), "?");
    assert_string_equal(weight_type_name(WT_Q4_K), "Q4_K");
}

// Every fp16 goes to float and back unchanged, and every float between two fp16 goes to the nearer
// (even on ties).
static void fp16_conversion_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float low = f16_to_f32((uint16_t)h), high = f16_to_f32((uint16_t)(h + 1));
        assert_int_equal(f32_to_f16(low), h);
        assert_int_equal(f32_to_f16(-low), h | 0x8000);
        if (h + 1 == 0x7c00)
            high = 65536;
        float middle = (low + high) / 2;
        assert_int_equal(f32_to_f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(f32_to_f16(INFINITY), 0x7c00);
    assert_true(isnan(f16_to_f32(f32_to_f16(NAN))));
    assert_true(f16_to_f32(0x0001) == 0x1p-24f);
}

static void bf16_conversion_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        float low = bf16_to_f32((uint16_t)h);
        assert_int_equal(f32_to_bf16(low), h);
        assert_int_equal(f32_to_bf16(f32_from_bits(h << 16 | 0x7fff)), h);
        assert_int_equal(f32_to_bf16(f32_from_bits(h << 16 | 0x8000)), h & 1 ? h + 1 : h);
        assert_int_equal(f32_to_bf16(f32_from_bits(h << 16 | 0x8001)), h + 1);
    }
    assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_gives_the_bits_of_the_gguf_package),
        cmocka_unit_test(an_int4_value_is_scale_times_code_minus_zero),
        cmocka_unit_test(a_part_of_a_row_dequantises_like_the_whole),
        cmocka_unit_test(unknown_types_have_no_block_and_no_name),
        cmocka_unit_test(fp16_conversion_rounds_to_nearest_even),
        cmocka_unit_test(bf16_conversion_rounds_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
