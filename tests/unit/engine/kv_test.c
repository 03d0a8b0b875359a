// The paged KV pool: counting, sharing, copying, exhaustion, and that no page carries old bytes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "engine/kv.h"

enum { N_PAGES = 8 };

static const kv_shape shape = {.type = KV_F16, .n_layers = 3, .n_kv_heads = 2, .head_dim = 8};

static size_t plane(void) { return kv_page_bytes(&shape) / (2 * (size_t)shape.n_layers); }

static kv_pool *open_pool(void) {
    kv_pool *p = NULL;
    err e = {0};
    assert_int_equal(kv_pool_open(&shape, N_PAGES * kv_page_bytes(&shape) + 100, &p, &e), 0);
    assert_int_equal(kv_pool_n_pages(p), N_PAGES);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    return p;
}

static char *k_page(const kv_pool *p, int layer, int32_t page) {
    return (char *)kv_pool_layer(p, layer)->k + plane() * (size_t)page;
}

static char *v_page(const kv_pool *p, int layer, int32_t page) {
    return (char *)kv_pool_layer(p, layer)->v + plane() * (size_t)page;
}

static void fill_page(const kv_pool *p, int32_t page, int byte) {
    for (int i = 0; i < shape.n_layers; i++) {
        memset(k_page(p, i, page), byte, plane());
        memset(v_page(p, i, page), byte + 1, plane());
    }
}

static void assert_page(const kv_pool *p, int32_t page, int k, int v) {
    for (int i = 0; i < shape.n_layers; i++)
        for (size_t b = 0; b < plane(); b++) {
            assert_int_equal(k_page(p, i, page)[b], k);
            assert_int_equal(v_page(p, i, page)[b], v);
        }
}

static void a_table_holds_as_many_pages_as_its_positions_need(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table t;
    kv_table_init(&t, 100);
    static const int tokens[] = {0, 1, 16, 17, 32, 33, 96}, pages[] = {0, 1, 1, 2, 2, 3, 6};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(kv_table_grow(p, &t, tokens[i], NULL), 0);
        assert_int_equal(t.n, pages[i]);
        assert_int_equal(kv_pool_n_free(p), N_PAGES - pages[i]);
    }
    kv_table_shrink(p, &t, 17);
    assert_int_equal(t.n, 2);
    kv_table_shrink(p, &t, 0);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    kv_table_release(&t);
    kv_pool_close(p);
}

static void no_page_belongs_to_two_tables(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table a, b;
    bool seen[N_PAGES] = {false};
    kv_table_init(&a, 64);
    kv_table_init(&b, 64);
    for (int n = 16; n <= 64; n += 16) {
        assert_int_equal(kv_table_grow(p, &a, n, NULL), 0);
        assert_int_equal(kv_table_grow(p, &b, n, NULL), 0);
    }
    for (int i = 0; i < 8; i++) {
        int32_t page = i < 4 ? a.pages[i] : b.pages[i - 4];
        assert_in_range(page, 0, N_PAGES - 1);
        assert_false(seen[page]);
        seen[page] = true;
        assert_int_equal(kv_page_refs(p, page), 1);
    }
    kv_table_release(&a);
    kv_table_release(&b);
    kv_pool_close(p);
}

static void a_page_that_is_taken_again_is_zero(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table t;
    kv_table_init(&t, 16);
    assert_int_equal(kv_table_grow(p, &t, 16, NULL), 0);
    int32_t page = t.pages[0];
    fill_page(p, page, 7);
    kv_table_shrink(p, &t, 0);
    assert_int_equal(kv_table_grow(p, &t, 16, NULL), 0);
    assert_int_equal(t.pages[0], page);
    assert_page(p, page, 0, 0);
    kv_table_release(&t);
    kv_pool_close(p);
}

static void a_fork_shares_full_pages_and_copies_the_last(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table a, b;
    kv_table_init(&a, 64);
    kv_table_init(&b, 64);
    assert_int_equal(kv_table_grow(p, &a, 40, NULL), 0); // two full pages and half of one
    for (int i = 0; i < 3; i++)
        fill_page(p, a.pages[i], 10 * i);
    assert_int_equal(kv_table_fork(p, &a, 40, &b, NULL), 0);
    assert_int_equal(b.n, 3);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(a.pages[i], b.pages[i]);
        assert_int_equal(kv_page_refs(p, a.pages[i]), 2);
    }
    assert_int_not_equal(a.pages[2], b.pages[2]);
    assert_page(p, b.pages[2], 20, 21);
    fill_page(p, b.pages[2], 50); // the copy's own
    assert_page(p, a.pages[2], 20, 21);
    kv_table_shrink(p, &a, 0);
    assert_int_equal(kv_pool_n_free(p), N_PAGES - 3); // what is shared lives on
    assert_int_equal(kv_page_refs(p, b.pages[0]), 1);
    assert_page(p, b.pages[1], 10, 11);
    kv_table_shrink(p, &b, 0);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    kv_table_release(&a);
    kv_table_release(&b);
    kv_pool_close(p);
}

static void a_fork_at_the_end_of_a_page_copies_nothing(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table a, b;
    kv_table_init(&a, 64);
    kv_table_init(&b, 64);
    assert_int_equal(kv_table_grow(p, &a, 32, NULL), 0);
    assert_int_equal(kv_table_fork(p, &a, 32, &b, NULL), 0);
    assert_int_equal(kv_pool_n_free(p), N_PAGES - 2);
    assert_int_equal(kv_table_grow(p, &b, 33, NULL), 0);
    assert_int_equal(a.n, 2);
    assert_int_equal(b.n, 3);
    kv_table_shrink(p, &b, 0);
    kv_table_shrink(p, &a, 0);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    kv_table_release(&a);
    kv_table_release(&b);
    kv_pool_close(p);
}

static void an_exhausted_pool_changes_nothing(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table a, b;
    err e = {0};
    kv_table_init(&a, N_PAGES * KV_PAGE_TOKENS);
    kv_table_init(&b, N_PAGES * KV_PAGE_TOKENS);
    assert_int_equal(kv_table_grow(p, &a, N_PAGES * KV_PAGE_TOKENS - 20, NULL), 0); // 7 pages
    assert_int_equal(kv_table_grow(p, &b, 17, &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_int_equal(b.n, 0);
    assert_int_equal(kv_pool_n_free(p), 1);
    assert_int_equal(kv_table_grow(p, &b, 16, NULL), 0);
    e = (err){0};
    kv_table c;
    kv_table_init(&c, N_PAGES * KV_PAGE_TOKENS);
    assert_int_equal(kv_table_fork(p, &a, 20, &c, &e), -1); // one to copy, none free
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_int_equal(c.n, 0);
    assert_int_equal(kv_page_refs(p, a.pages[0]), 1);
    assert_int_equal(kv_table_fork(p, &a, 16, &c, NULL), 0);
    kv_table_release(&a);
    kv_table_release(&b);
    kv_table_release(&c);
    kv_pool_close(p);
}

static void a_table_refuses_more_positions_than_it_was_made_for(void **state) {
    (void)state;
    kv_pool *p = open_pool();
    kv_table t;
    err e = {0};
    kv_table_init(&t, 20);
    assert_int_equal(kv_table_grow(p, &t, 33, &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    kv_table_release(&t);
    kv_pool_close(p);
}

static void a_pool_without_room_for_a_page_is_refused(void **state) {
    (void)state;
    kv_pool *p = NULL;
    err e = {0};
    assert_int_equal(kv_pool_open(&shape, kv_page_bytes(&shape) - 1, &p, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "kv_bytes");
    assert_null(p);
}

static void a_page_holds_what_its_type_takes(void **state) {
    (void)state;
    kv_shape s = {.n_layers = 3, .n_kv_heads = 2, .head_dim = 64};
    static const size_t vector[KV_TYPES] = {
        [KV_F32] = 256, [KV_F16] = 128, [KV_BF16] = 128, [KV_Q8] = 64 + 2};
    for (int i = 0; i < KV_TYPES; i++) {
        kv_type found;
        s.type = (kv_type)i;
        assert_int_equal(kv_page_bytes(&s), 3 * 2 * 2 * KV_PAGE_TOKENS * vector[i]);
        assert_true(kv_type_find(kv_type_name(s.type), &found) && found == s.type);
    }
    assert_false(kv_type_find("q4", &s.type));
    assert_false(kv_type_find("", &s.type));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_holds_as_many_pages_as_its_positions_need),
        cmocka_unit_test(no_page_belongs_to_two_tables),
        cmocka_unit_test(a_page_that_is_taken_again_is_zero),
        cmocka_unit_test(a_fork_shares_full_pages_and_copies_the_last),
        cmocka_unit_test(a_fork_at_the_end_of_a_page_copies_nothing),
        cmocka_unit_test(an_exhausted_pool_changes_nothing),
        cmocka_unit_test(a_table_refuses_more_positions_than_it_was_made_for),
        cmocka_unit_test(a_pool_without_room_for_a_page_is_refused),
        cmocka_unit_test(a_page_holds_what_its_type_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
