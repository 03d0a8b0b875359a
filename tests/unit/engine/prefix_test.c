// Sharing of pages by prefix, without a model: tables are filled with numbers that depend on all
// tokens before and on the salt, as KV does, so that a page in the wrong hands is seen. Chains,
// publishing, the order in which pages are given up, and random lives of many sequences.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "engine/prefix.h"

enum { N_PAGES = 24, MOST = 160, SEQS = 6, PAGE = KV_PAGE_TOKENS };

static const kv_shape shape = {.type = KV_F16, .n_layers = 2, .n_kv_heads = 2, .head_dim = 8};
static const uint8_t salts[3][PREFIX_SALT_BYTES] = {{1}, {1, 2}, {[31] = 1}};

typedef struct seq {
    bool live;
    int salt; // index into salts; -1: none
    kv_table t;
    prefix x;
    int32_t ids[MOST];
    int length;
} seq;

static kv_pool *open_pool(int n_pages) {
    kv_pool *p = NULL;
    assert_int_equal(kv_pool_open(&shape, (size_t)n_pages * kv_page_bytes(&shape), &p, NULL), 0);
    return p;
}

static uint64_t *cell(const kv_pool *p, int32_t page, int at) {
    size_t plane = kv_page_bytes(&shape) / (2 * (size_t)shape.n_layers);
    return (uint64_t *)((char *)kv_pool_layer(p, 1)->v + plane * (size_t)page) + at;
}

// What position n - 1 must hold.
static uint64_t content(int salt, const int32_t *ids, int n) {
    uint64_t h = 0xcbf29ce484222325u + (uint64_t)(salt + 1);
    for (int i = 0; i < n; i++)
        h = (h ^ (uint64_t)(ids[i] + 1)) * 0x100000001b3u;
    return h;
}

static void start(kv_pool *p, seq *s, int salt, const int32_t *ids, int n) {
    s->live = true;
    s->salt = salt;
    s->t = (kv_table){0};
    kv_table_init(&s->t, MOST);
    prefix_init(&s->x, salt < 0 ? NULL : salts[salt]);
    memcpy(s->ids, ids, (size_t)n * sizeof *ids);
    s->length = prefix_attach(&s->x, p, &s->t, ids, n);
}

static void end(kv_pool *p, seq *s) {
    kv_table_shrink(p, &s->t, 0);
    kv_table_release(&s->t);
    s->live = false;
}

// A step that stores the next n of the sequence's ids; false: no page is free.
static bool feed(kv_pool *p, seq *s, int n) {
    if (kv_table_grow(p, &s->t, s->length + n, NULL))
        return false;
    for (int i = s->length; i < s->length + n; i++)
        *cell(p, s->t.pages[i / PAGE], i % PAGE) = content(s->salt, s->ids, i + 1);
    prefix_append(&s->x, p, &s->t, s->length, s->ids + s->length, n);
    s->length += n;
    return true;
}

static void count_up(int32_t *ids, int n, int from) {
    for (int i = 0; i < n; i++)
        ids[i] = from + i;
}

// Starts a sequence, stores n tokens in chunks and ends it; returns how many were found.
static int live_once(kv_pool *p, int salt, const int32_t *ids, int n, int chunk) {
    seq s;
    start(p, &s, salt, ids, n);
    int found = s.length;
    while (s.length < n)
        assert_true(feed(p, &s, n - s.length < chunk ? n - s.length : chunk));
    end(p, &s);
    return found;
}

// ---- what is found

static void what_was_stored_under_a_salt_is_found_under_it_alone(void **state) {
    (void)state;
    int32_t ids[100];
    kv_pool *p = open_pool(N_PAGES);
    count_up(ids, 100, 0);
    assert_int_equal(live_once(p, 0, ids, 100, 7), 0);
    assert_int_equal(kv_pool_stats(p).published, 6);
    assert_int_equal(live_once(p, 0, ids, 100, 100), 96);
    assert_int_equal(kv_pool_stats(p).hits, 6);
    assert_int_equal(live_once(p, 1, ids, 100, 100), 0);
    assert_int_equal(live_once(p, 2, ids, 100, 100), 0);
    assert_int_equal(kv_pool_stats(p).published, 18);
    assert_int_equal(live_once(p, -1, ids, 100, 100), 0);
    assert_int_equal(kv_pool_stats(p).hits, 6);
    assert_int_equal(kv_pool_stats(p).misses, 6 + 6 + 6); // without a salt nothing is looked up
    kv_pool_close(p);
}

static void only_whole_pages_are_found_and_never_the_last_token(void **state) {
    (void)state;
    static const int lengths[] = {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65};
    static const int found[] = {0, 0, 0, 0, 16, 16, 16, 32, 48, 48, 48};
    int32_t ids[100];
    seq s;
    kv_pool *p = open_pool(N_PAGES);
    count_up(ids, 100, 0);
    live_once(p, 0, ids, 63, 63); // three full pages; the fourth lacks a token
    assert_int_equal(kv_pool_stats(p).published, 3);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        start(p, &s, 0, ids, lengths[i]);
        assert_int_equal(s.length, found[i]);
        end(p, &s);
    }
    kv_pool_close(p);
}

static void a_page_is_found_only_behind_the_same_beginning(void **state) {
    (void)state;
    int32_t ids[64], other[64];
    kv_pool *p = open_pool(N_PAGES);
    count_up(ids, 64, 0);
    live_once(p, 0, ids, 64, 64);
    memcpy(other, ids, sizeof ids);
    other[16] = 99; // the second page differs, the third and fourth are alike
    assert_int_equal(live_once(p, 0, other, 64, 64), 16);
    assert_int_equal(live_once(p, 0, ids + 16, 48, 48), 0); // the same ids elsewhere
    kv_pool_close(p);
}

static void a_page_is_found_while_its_sequence_still_runs(void **state) {
    (void)state;
    int32_t ids[64];
    seq a, b;
    kv_pool *p = open_pool(N_PAGES);
    count_up(ids, 64, 0);
    start(p, &a, 0, ids, 64);
    feed(p, &a, 40);
    assert_int_equal(prefix_in_use(salts[0], p, ids, 64), 32);
    assert_int_equal(prefix_in_use(salts[1], p, ids, 64), 0);
    assert_int_equal(prefix_in_use(NULL, p, ids, 64), 0);
    int n_free = kv_pool_n_free(p);
    start(p, &b, 0, ids, 64);
    assert_int_equal(b.length, 32);
    assert_int_equal(kv_pool_n_free(p), n_free); // shared, not taken
    assert_int_equal(kv_page_refs(p, a.t.pages[0]), 2);
    end(p, &a);
    assert_int_equal(kv_page_refs(p, b.t.pages[0]), 1);
    end(p, &b);
    assert_int_equal(prefix_in_use(salts[0], p, ids, 64), 0); // known, but idle
    kv_pool_close(p);
}

static void of_two_that_store_the_same_one_page_remains(void **state) {
    (void)state;
    int32_t ids[64];
    seq a, b;
    kv_pool *p = open_pool(N_PAGES);
    count_up(ids, 64, 0);
    start(p, &a, 0, ids, 64);
    start(p, &b, 0, ids, 64); // nothing was there for either
    feed(p, &a, 20);
    feed(p, &b, 20);
    assert_int_equal(a.t.pages[0], b.t.pages[0]);
    assert_int_not_equal(a.t.pages[1], b.t.pages[1]);
    assert_int_equal(kv_page_refs(p, a.t.pages[0]), 2);
    assert_int_equal(kv_pool_n_free(p), N_PAGES - 3);
    end(p, &a);
    end(p, &b);
    assert_int_equal(kv_pool_n_free(p), N_PAGES);
    kv_pool_close(p);
}

// ---- what is given up

static void what_was_used_last_is_given_up_last(void **state) {
    (void)state;
    int32_t ids[3][33], all[MOST];
    kv_pool *p = open_pool(9);
    seq s;
    count_up(all, MOST, 1000);
    for (int i = 0; i < 3; i++) {
        count_up(ids[i], 33, 100 * i);
        live_once(p, 0, ids[i], 33, 33); // two pages published each, one given back
    }
    assert_int_equal(live_once(p, 0, ids[0], 33, 33), 32); // 0 is used again: now 1 is the oldest
    start(p, &s, -1, all, MOST);
    assert_true(feed(p, &s, 4 * PAGE)); // three pages are free, one must go
    assert_int_equal(kv_pool_stats(p).evicted, 1);
    assert_int_equal(prefix_in_use(salts[0], p, ids[1], 33), 0);
    assert_true(feed(p, &s, PAGE));
    assert_int_equal(kv_pool_stats(p).evicted, 2);
    end(p, &s);
    assert_int_equal(live_once(p, 0, ids[2], 33, 33), 32);
    assert_int_equal(live_once(p, 0, ids[0], 33, 33), 32);
    assert_int_equal(live_once(p, 0, ids[1], 33, 33), 0);
    kv_pool_close(p);
}

static void the_end_of_a_prefix_is_given_up_before_its_beginning(void **state) {
    (void)state;
    int32_t ids[65], all[MOST];
    kv_pool *p = open_pool(6);
    seq s;
    count_up(ids, 65, 0);
    count_up(all, MOST, 1000);
    live_once(p, 0, ids, 65, 65); // four published, two free
    for (int i = 3; i >= 0; i--) {
        start(p, &s, -1, all, MOST);
        assert_true(feed(p, &s, (6 - i) * PAGE));
        end(p, &s);
        start(p, &s, 0, ids, 65);
        assert_int_equal(s.length, i * PAGE);
        end(p, &s);
    }
    assert_int_equal(kv_pool_stats(p).published, 0);
    kv_pool_close(p);
}

static void a_page_in_use_is_never_given_up(void **state) {
    (void)state;
    int32_t ids[33], all[MOST];
    kv_pool *p = open_pool(4);
    seq a, b;
    count_up(ids, 33, 0);
    count_up(all, MOST, 1000);
    live_once(p, 0, ids, 33, 33);
    start(p, &a, 0, ids, 33); // from the cache, so its pages were idle
    start(p, &b, -1, all, MOST);
    assert_false(feed(p, &b, 3 * PAGE));
    assert_true(feed(p, &b, 2 * PAGE));
    assert_false(feed(p, &b, 1));
    assert_int_equal(kv_pool_stats(p).evicted, 0);
    for (int i = 0; i < 32; i++)
        assert_int_equal(*cell(p, a.t.pages[i / PAGE], i % PAGE), content(0, ids, i + 1));
    end(p, &a);
    assert_true(feed(p, &b, 2 * PAGE));
    assert_int_equal(kv_pool_stats(p).evicted, 2);
    end(p, &b);
    kv_pool_close(p);
}

// ---- random lives

typedef struct life {
    kv_pool *p;
    seq s[SEQS];
    uint64_t random;
    int n_hits, n_full, n_forks;
} life;

static int draw(life *l, int n) { // xorshift64*
    l->random ^= l->random >> 12;
    l->random ^= l->random << 25;
    l->random ^= l->random >> 27;
    return (int)((l->random * 0x2545f4914f6cdd1du >> 33) % (uint64_t)n);
}

static int count_users(const life *l, int32_t page) {
    int n = 0;
    for (int i = 0; i < SEQS; i++)
        for (int k = 0; l->s[i].live && k < l->s[i].t.n; k++)
            n += l->s[i].t.pages[k] == page;
    return n;
}

static void check_seq(const life *l, const seq *s) {
    prefix x;
    kv_table t;
    assert_int_equal(s->t.n, kv_pages_for(s->length));
    for (int i = 0; i < s->length; i++)
        assert_int_equal(*cell(l->p, s->t.pages[i / PAGE], i % PAGE),
                         content(s->salt, s->ids, i + 1));
    if (s->salt < 0)
        return;
    prefix_init(&x, salts[s->salt]); // every full page is what anyone would find
    kv_table_init(&t, MOST);
    kv_stats before = kv_pool_stats(l->p);
    int n = s->length % PAGE == 0 && s->length > 0 ? s->length + 1 : s->length;
    assert_int_equal(prefix_attach(&x, l->p, &t, s->ids, n), s->length / PAGE * PAGE);
    assert_memory_equal(t.pages, s->t.pages, (size_t)t.n * sizeof *t.pages);
    kv_table_shrink(l->p, &t, 0);
    kv_table_release(&t);
    assert_int_equal(kv_pool_stats(l->p).evicted, before.evicted);
}

static void check_life(const life *l) {
    int n_free = 0;
    for (int32_t i = 0; i < N_PAGES; i++) {
        assert_int_equal(kv_page_refs(l->p, i), count_users(l, i));
        n_free += count_users(l, i) == 0;
    }
    assert_int_equal(kv_pool_n_free(l->p), n_free);
    for (int i = 0; i < SEQS; i++)
        if (l->s[i].live)
            check_seq(l, &l->s[i]);
}

// Pages of one of two contents, so that beginnings meet often.
static void random_start(life *l, seq *s) {
    int32_t ids[MOST];
    for (int i = 0; i < MOST; i += PAGE)
        count_up(ids + i, PAGE, draw(l, 4) ? 100 : 200);
    start(l->p, s, draw(l, 4) - 1, ids, 1 + draw(l, MOST));
    memcpy(s->ids, ids, sizeof ids);
    l->n_hits += s->length > 0;
}

static void random_fork(life *l, const seq *from, seq *to) {
    kv_table_init(&to->t, MOST);
    if (kv_table_fork(l->p, &from->t, from->length, &to->t, NULL)) {
        kv_table_release(&to->t);
        return;
    }
    kv_table t = to->t;
    *to = *from;
    to->t = t;
    for (int i = to->length; i < MOST; i++) // goes its own way
        to->ids[i] = draw(l, 3);
    l->n_forks++;
}

static void random_step(life *l, seq *s) {
    int n = 1 + draw(l, draw(l, 2) ? 40 : 3);
    if (n > MOST - s->length)
        return end(l->p, s);
    if (draw(l, 5) == 0 && !kv_table_grow(l->p, &s->t, s->length + n, NULL))
        return kv_table_shrink(l->p, &s->t, s->length); // a step that failed
    l->n_full += !feed(l->p, s, n);
}

static void random_move(life *l) {
    seq *s = &l->s[draw(l, SEQS)], *other = &l->s[draw(l, SEQS)];
    if (!s->live)
        random_start(l, s);
    else if (!other->live && draw(l, 2))
        random_fork(l, s, other);
    else if (draw(l, 12) == 0)
        end(l->p, s);
    else
        random_step(l, s);
}

// After all is over, every page can be taken, and is zero.
static void check_nothing_leaked(life *l) {
    kv_table t;
    for (int i = 0; i < SEQS; i++)
        if (l->s[i].live)
            end(l->p, &l->s[i]);
    assert_int_equal(kv_pool_n_free(l->p), N_PAGES);
    kv_table_init(&t, N_PAGES * PAGE);
    assert_int_equal(kv_table_grow(l->p, &t, N_PAGES * PAGE, NULL), 0);
    for (int i = 0; i < N_PAGES * PAGE; i++)
        assert_int_equal(*cell(l->p, t.pages[i / PAGE], i % PAGE), 0);
    assert_int_equal(kv_pool_stats(l->p).published, 0);
    kv_table_shrink(l->p, &t, 0);
    kv_table_release(&t);
}

static void random_lives_leak_no_page_and_mix_none_up(void **state) {
    (void)state;
    int n_hits = 0, n_full = 0, n_forks = 0, n_evicted = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        life l = {.p = open_pool(N_PAGES), .random = seed};
        for (int i = 0; i < 400; i++) {
            random_move(&l);
            check_life(&l);
        }
        n_evicted += (int)kv_pool_stats(l.p).evicted;
        check_nothing_leaked(&l);
        kv_pool_close(l.p);
        n_hits += l.n_hits;
        n_full += l.n_full;
        n_forks += l.n_forks;
    }
    assert_true(n_hits > 100 && n_full > 100 && n_forks > 100 && n_evicted > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_stored_under_a_salt_is_found_under_it_alone),
        cmocka_unit_test(only_whole_pages_are_found_and_never_the_last_token),
        cmocka_unit_test(a_page_is_found_only_behind_the_same_beginning),
        cmocka_unit_test(a_page_is_found_while_its_sequence_still_runs),
        cmocka_unit_test(of_two_that_store_the_same_one_page_remains),
        cmocka_unit_test(what_was_used_last_is_given_up_last),
        cmocka_unit_test(the_end_of_a_prefix_is_given_up_before_its_beginning),
        cmocka_unit_test(a_page_in_use_is_never_given_up),
        cmocka_unit_test(random_lives_leak_no_page_and_mix_none_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
