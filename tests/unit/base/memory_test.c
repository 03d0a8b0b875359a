// err, arena, buf, cursor, id, file and memory.
#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/cursor.h"
#include "base/err.h"
#include "base/file.h"
#include "base/id.h"
#include "base/memory.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

// ---- err

static void an_error_keeps_code_field_and_message(void **state) {
    (void)state;
    err e = {.retry_ms = 5};
    assert_int_equal(err_set(&e, ERR_RATE, "n", "%d is too many", 7), -1);
    assert_int_equal(e.code, ERR_RATE);
    assert_int_equal(e.retry_ms, 0);
    assert_string_equal(e.param, "n");
    assert_string_equal(e.message, "7 is too many");
    assert_int_equal(err_set(NULL, ERR_RATE, "n", "x"), -1);
    assert_int_equal(err_wrap(NULL, "x"), -1);
}

static void an_error_may_be_made_from_itself(void **state) {
    (void)state;
    err e = {0};
    err_set(&e, ERR_IO, "field", "inner");
    err_set(&e, ERR_FORMAT, e.param, "outer: %s", e.message);
    assert_string_equal(e.param, "field");
    assert_string_equal(e.message, "outer: inner");
    assert_int_equal(err_wrap(&e, "file %d", 3), -1);
    assert_string_equal(e.message, "file 3: outer: inner");
    assert_int_equal(e.code, ERR_FORMAT);
}

static void a_message_is_always_whole_utf8(void **state) {
    (void)state;
    err e = {0};
    err_set(&e, ERR_IO, NULL, "bad %s", "\xff\xc3!");
    assert_string_equal(e.message, "bad ?"
                                   "?!");
    char text[sizeof e.message + 2] = "";
    for (size_t i = 0; i + 3 < sizeof text; i += 3)
        memcpy(text + i, "\xe2\x82\xac", 3);
    err_set(&e, ERR_IO, NULL, "%s", text); // 319 bytes fit: 106 characters and a cut one
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    assert_memory_equal(e.message + 315, "\xe2\x82\xac?", 4);
    err_wrap(&e, "x%s", "\xe2\x82\xac");
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    assert_memory_equal(e.message, "x\xe2\x82\xac: \xe2", 7);
}

// ---- arena

static void an_arena_hands_out_zeroed_aligned_memory_of_any_size(void **state) {
    (void)state;
    arena a;
    arena_init(&a);
    for (int round = 0; round < 3; round++) {
        uint8_t *before = NULL;
        for (size_t n = 0; n < 200000; n = n * 2 + 1) {
            uint8_t *p = arena_alloc(&a, n);
            assert_int_equal((uintptr_t)p % 16, 0);
            assert_ptr_not_equal(p, before);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(p[i], 0);
            memset(p, 0xaa, n);
            before = n ? p : before;
        }
        arena_clear(&a);
        assert_int_equal(a.used, 0);
        assert_in_range(a.total, 1, 65536);
    }
    arena_release(&a);
    assert_int_equal(a.total, 0);
    arena_release(&a);
}

static void an_arena_copies_text(void **state) {
    (void)state;
    arena a;
    arena_init(&a);
    char text[] = "text";
    char *copy = arena_strdup(&a, text);
    char *made = arena_printf(&a, "%s %d", text, 5);
    void *bytes = arena_dup(&a, "a\0b", 3);
    text[0] = 'n';
    assert_string_equal(copy, "text");
    assert_string_equal(made, "text 5");
    assert_memory_equal(bytes, "a\0b", 3);
    arena_release(&a);
}

// ---- buf and cursor

static void a_buffer_grows_and_ends_with_a_nul(void **state) {
    (void)state;
    buf b = {0};
    for (int i = 0; i < 5000; i++)
        buf_printf(&b, "%d,", i % 10);
    assert_int_equal(b.len, 10000);
    assert_int_equal(strlen(b.data), 10000);
    buf_consume(&b, 9998);
    assert_string_equal(b.data, "9,");
    buf_cut(&b, 1);
    assert_string_equal(b.data, "9");
    memcpy(buf_extend(&b, 3), "xyz", 3);
    assert_string_equal(b.data, "9xyz");
    char *taken = buf_take(&b);
    assert_string_equal(taken, "9xyz");
    assert_null(b.data);
    free(taken);
    taken = buf_take(&b);
    assert_string_equal(taken, "");
    free(taken);
    buf_clear(&b);
    buf_consume(&b, 0);
    buf_release(&b);
}

static void json_text_is_escaped(void **state) {
    (void)state;
    buf b = {0};
    buf_put_json(&b, "a\"\\\n\t\r\b\f\x01\x1f\x7f/\xe2\x82\xac\0z", 17);
    assert_string_equal(b.data,
                        "\"a\\\"\\\\\\n\\t\\r\\b\\f\\u0001\\u001f\x7f/\xe2\x82\xac\\u0000z\"");
    buf_clear(&b);
    buf_put_json(&b, "", 0);
    assert_string_equal(b.data, "\"\"");
    buf_release(&b);
}

static void what_is_written_is_read_back(void **state) {
    (void)state;
    buf b = {0};
    buf_put_u8(&b, 0xfe);
    buf_put_u16(&b, 0xfedc);
    buf_put_u32(&b, 0xfedcba98);
    buf_put_u64(&b, 0xfedcba9876543210);
    buf_put_f32(&b, -1.5f);
    buf_put_bytes(&b, "abc", 3);
    buf_put_bytes(&b, NULL, 0);
    double d = 2.25;
    buf_put(&b, &d, sizeof d);
    assert_memory_equal(b.data, "\xfe\xdc\xfe\x98\xba\xdc\xfe", 7);
    cursor c = cursor_over(b.data, b.len);
    size_t n;
    assert_int_equal(cursor_u8(&c), 0xfe);
    assert_int_equal(cursor_u16(&c), 0xfedc);
    assert_int_equal(cursor_u32(&c), 0xfedcba98);
    assert_int_equal(cursor_u64(&c), 0xfedcba9876543210);
    assert_true(cursor_f32(&c) == -1.5f);
    assert_memory_equal(cursor_counted(&c, &n), "abc", 3);
    assert_int_equal(n, 3);
    assert_non_null(cursor_counted(&c, &n));
    assert_int_equal(n, 0);
    assert_false(cursor_done(&c));
    assert_true(cursor_f64(&c) == 2.25);
    assert_true(cursor_done(&c));
    buf_release(&b);
}

static void a_short_read_fails_for_good_and_reads_nothing(void **state) {
    (void)state;
    cursor c = cursor_over("\1\2\3", 3);
    assert_int_equal(cursor_u16(&c), 0x0201);
    assert_int_equal(cursor_u16(&c), 0);
    assert_true(c.failed);
    assert_int_equal(cursor_u8(&c), 0);
    assert_int_equal(cursor_left(&c), 0);
    assert_false(cursor_done(&c));
    size_t n = 7;
    c = cursor_over("\xff\xff\xff\xff"
                    "ab",
                    6);
    assert_null(cursor_counted(&c, &n));
    assert_int_equal(n, 0);
    c = cursor_over("ab", 2);
    assert_null(cursor_bytes(&c, SIZE_MAX));
    c = cursor_over(NULL, 0);
    assert_true(cursor_done(&c));
    assert_null(cursor_bytes(&c, 1));
}

// ---- id

static void uuids_are_version_7_sorted_and_different(void **state) {
    (void)state;
    char before[ID_UUID_TEXT] = "", now[ID_UUID_TEXT];
    for (int i = 0; i < 20000; i++) {
        id_uuid7(now);
        assert_int_equal(strlen(now), 36);
        assert_int_equal(now[14], '7');
        assert_non_null(strchr("89ab", now[19]));
        assert_true(strcmp(before, now) < 0);
        memcpy(before, now, sizeof now);
    }
}

#define N_IDS 20000
static pthread_barrier_t together;

static void *make_ids(void *out) {
    char(*ids)[ID_UUID_TEXT] = out;
    pthread_barrier_wait(&together);
    for (int i = 0; i < N_IDS; i++)
        id_uuid7(ids[i]);
    return NULL;
}

static int compare_ids(const void *a, const void *b) { return strcmp(a, b); }

static void uuids_of_several_threads_differ_in_their_time_part(void **state) {
    (void)state;
    static char ids[4 * N_IDS][ID_UUID_TEXT];
    pthread_t threads[4];
    pthread_barrier_init(&together, NULL, 4);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, make_ids, ids[i * N_IDS]);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&together);
    qsort(ids, 4 * N_IDS, ID_UUID_TEXT, compare_ids);
    for (int i = 1; i < 4 * N_IDS; i++)
        assert_int_not_equal(strncmp(ids[i - 1], ids[i], 18), 0);
}

static void hexadecimal_goes_both_ways_and_refuses_the_rest(void **state) {
    (void)state;
    uint8_t bytes[16], again[16];
    char text[33];
    id_random(bytes, sizeof bytes);
    id_hex(bytes, sizeof bytes, text);
    assert_int_equal(id_unhex(text, again, 16), 0);
    assert_memory_equal(bytes, again, 16);
    assert_int_equal(id_unhex("aBcD", again, 2), 0);
    assert_int_equal(id_unhex("abc", again, 2), -1);
    assert_int_equal(id_unhex("abcde", again, 2), -1);
    assert_int_equal(id_unhex("abcg", again, 2), -1);
    assert_int_equal(id_unhex("ab d", again, 2), -1);
    assert_int_equal(id_unhex("", again, 0), 0);
}

// ---- file

static const char *in_dir(const char *name) {
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, 256, "%s/%s", test_dir(), name);
    return p;
}

static void a_file_is_replaced_whole_with_its_mode(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    struct stat s;
    const char *path = in_dir("file");
    assert_false(file_exists(path));
    assert_int_equal(file_write_atomic(path, 0640, "one", 3, &e), 0);
    assert_int_equal(file_write_atomic(path, 0600, "two\0", 4, &e), 0);
    assert_true(file_exists(path));
    assert_int_equal(stat(path, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0600);
    buf_puts(&b, "before ");
    assert_int_equal(file_read(path, 4, &b, &e), 0);
    assert_int_equal(b.len, 11);
    assert_memory_equal(b.data, "before two\0", 11);
    assert_int_equal(file_read(path, 3, &b, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "larger than 3 bytes"));
    buf_release(&b);
}

static void a_file_that_cannot_be_used_is_named(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    assert_int_equal(file_read(in_dir("none"), 10, &b, &e), -1);
    assert_non_null(strstr(e.message, in_dir("none")));
    assert_int_equal(file_read(test_dir(), 10, &b, &e), -1);
    assert_int_equal(file_write_atomic(in_dir("no/where"), 0600, "x", 1, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "no/where"));
    buf_release(&b);
}

static void directories_are_made_with_their_parents(void **state) {
    (void)state;
    err e = {0};
    assert_int_equal(file_mkdirs(in_dir("a/b//c/"), 0700, &e), 0);
    assert_int_equal(file_mkdirs(in_dir("a/b/c"), 0700, &e), 0);
    assert_true(file_exists(in_dir("a/b/c")));
    assert_int_equal(file_write_atomic(in_dir("a/plain"), 0600, "", 0, &e), 0);
    assert_int_equal(file_mkdirs(in_dir("a/plain/x"), 0700, &e), -1);
    assert_non_null(strstr(e.message, "a/plain"));
    assert_int_equal(file_mkdirs("", 0700, &e), -1);
}

// ---- memory

static bool is_short_now(void) {
    clock_sleep_ms(20); // longer than an answer is kept
    return memory_is_short();
}

static void memory_is_short_while_an_address_space_is_at_its_limit(void **state) {
    (void)state;
    struct rlimit before;
    assert_false(is_short_now());
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    struct rlimit least = {.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_AS, &least), 0);
    bool is_short = is_short_now();
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_true(is_short);
    assert_false(is_short_now());
}

static void whole_numbers_are_written_as_printf_writes_them(void **state) {
    (void)state;
    static const int64_t values[] = {0, 7, -7, 10, 99, 100, INT32_MIN, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        buf ours = {0}, theirs = {0};
        buf_put_int(&ours, values[i]);
        buf_printf(&theirs, "%lld", (long long)values[i]);
        assert_string_equal(ours.data, theirs.data);
        assert_int_equal(ours.len, theirs.len);
        buf_release(&ours);
        buf_release(&theirs);
    }
}

// Around the room that a buffer has, where a text is printed twice.
static void a_printed_text_of_any_length_is_whole(void **state) {
    (void)state;
    for (int n = 0; n < 300; n++) {
        buf b = {0};
        buf_puts(&b, "x");
        buf_printf(&b, "%0*d|", n, 1);
        assert_int_equal(b.len, 1 + (n > 1 ? n : 1) + 1);
        assert_int_equal(b.data[b.len - 1], '|');
        assert_int_equal(strlen(b.data), b.len);
        buf_release(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_numbers_are_written_as_printf_writes_them),
        cmocka_unit_test(a_printed_text_of_any_length_is_whole),
        cmocka_unit_test(an_error_keeps_code_field_and_message),
        cmocka_unit_test(an_error_may_be_made_from_itself),
        cmocka_unit_test(a_message_is_always_whole_utf8),
        cmocka_unit_test(an_arena_hands_out_zeroed_aligned_memory_of_any_size),
        cmocka_unit_test(an_arena_copies_text),
        cmocka_unit_test(a_buffer_grows_and_ends_with_a_nul),
        cmocka_unit_test(json_text_is_escaped),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_short_read_fails_for_good_and_reads_nothing),
        cmocka_unit_test(uuids_are_version_7_sorted_and_different),
        cmocka_unit_test(uuids_of_several_threads_differ_in_their_time_part),
        cmocka_unit_test(hexadecimal_goes_both_ways_and_refuses_the_rest),
        cmocka_unit_test(a_file_is_replaced_whole_with_its_mode),
        cmocka_unit_test(a_file_that_cannot_be_used_is_named),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(memory_is_short_while_an_address_space_is_at_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
