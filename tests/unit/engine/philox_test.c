// Philox4x32-10 against the known answers of Random123 (kat_vectors), and how tokens are numbered
// in it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "engine/philox.h"

static void known_answers_of_random123_hold(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

static void a_token_is_numbered_by_seed_choice_and_position(void **state) {
    (void)state;
    const uint32_t key[2] = {0xa4093822, 0x299f31d0}, counter[4] = {17, 3, 0, 0};
    uint32_t out[4];
    philox4x32(counter, key, out);
    uint64_t bits = philox_token(0x299f31d0a4093822u, 3, 17);
    assert_true(bits == ((uint64_t)out[0] << 32 | out[1]));
    assert_true(bits != philox_token(0x299f31d0a4093822u, 3, 18));
    assert_true(bits != philox_token(0x299f31d0a4093822u, 2, 17));
    assert_true(bits != philox_token(0x299f31d1a4093822u, 3, 17));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers_of_random123_hold),
        cmocka_unit_test(a_token_is_numbered_by_seed_choice_and_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
