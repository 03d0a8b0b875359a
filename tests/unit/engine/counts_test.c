// The token counts behind the penalties.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "engine/counts.h"

static void expect(const token_counts *c, int32_t id, int seen, int made) {
    const token_count *t = counts_find(c, id);
    assert_non_null(t);
    assert_int_equal(t->id, id);
    assert_int_equal(t->seen, seen);
    assert_int_equal(t->made, made);
}

static void prompt_and_answer_are_told_apart(void **state) {
    (void)state;
    token_counts *c = counts_new(4);
    counts_add(c, 5, false);
    counts_add(c, 5, true);
    counts_add(c, 0, true);
    expect(c, 5, 2, 1);
    expect(c, 0, 1, 1);
    assert_null(counts_find(c, 6));
    assert_int_equal(c->n, 2);
    counts_free(c);
}

static void ids_that_collide_are_kept_apart(void **state) {
    (void)state;
    enum { N = 5000 };
    token_counts *c = counts_new(N);
    for (int32_t i = 0; i < N; i++)
        for (int32_t k = 0; k <= i % 3; k++)
            counts_add(c, i * 64, k > 0);
    assert_int_equal(c->n, N);
    for (int32_t i = 0; i < N; i++)
        expect(c, i * 64, i % 3 + 1, i % 3);
    assert_null(counts_find(c, 1));
    counts_free(c);
}

static void what_is_undone_never_was(void **state) {
    (void)state;
    token_counts *c = counts_new(3);
    counts_add(c, 1, false);
    for (int round = 0; round < 100;
         round++) { // different ids each time, but never more than 3 at once
        counts_add(c, 1, true);
        counts_add(c, 100 + round, true);
        counts_add(c, 500 + round, true);
        counts_undo(c, 500 + round, true);
        counts_undo(c, 100 + round, true);
        counts_undo(c, 1, true);
    }
    assert_int_equal(c->n, 1);
    expect(c, 1, 1, 0);
    assert_null(counts_find(c, 100));
    counts_free(c);
}

static void a_copy_stands_on_its_own(void **state) {
    (void)state;
    token_counts *a = counts_new(8), *b = counts_new(8);
    counts_add(a, 3, true);
    counts_copy(b, a);
    counts_add(a, 3, true);
    counts_add(b, 9, false);
    expect(a, 3, 2, 2);
    expect(b, 3, 1, 1);
    assert_null(counts_find(a, 9));
    counts_free(a);
    counts_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_and_answer_are_told_apart),
        cmocka_unit_test(ids_that_collide_are_kept_apart),
        cmocka_unit_test(what_is_undone_never_was),
        cmocka_unit_test(a_copy_stands_on_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
