// The GGUF reader on valid files, and on files cut or damaged anywhere.
#include "model/gguf.h"
#include "model/model.h"
#include "tests/support/gguf_builder.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static void put_pairs(gguf_builder *b) {
    static const char *const names[] = {"first", "", "third"};
    static const int32_t numbers[] = {7, -8, 9};
    const uint8_t u8 = 200;
    const int8_t i8 = -5;
    const uint16_t u16 = 60000;
    const int16_t i16 = 30000;
    const int64_t i64 = INT64_MIN;
    const uint64_t u64 = UINT64_MAX;
    const double f64 = 0.1;
    builder_raw(b, "a.u8", GGUF_U8, &u8, 1);
    builder_raw(b, "a.i8", GGUF_I8, &i8, 1);
    builder_raw(b, "a.u16", GGUF_U16, &u16, 2);
    builder_raw(b, "a.i16", GGUF_I16, &i16, 2);
    builder_u32(b, "a.u32", 4000000000u);
    builder_f32(b, "a.f32", 1.5f);
    builder_bool(b, "a.bool", true);
    builder_string(b, "a.string", "text");
    builder_strings(b, "a.strings", names, 3);
    builder_strings(b, "a.nothing", names, 0);
    builder_i32s(b, "a.i32s", numbers, 3);
    builder_raw(b, "a.i64", GGUF_I64, &i64, 8);
    builder_raw(b, "a.u64", GGUF_U64, &u64, 8);
    builder_raw(b, "a.f64", GGUF_F64, &f64, 8);
}

static void small_file(buf *out) {
    static const float values[] = {1, 2, 3, 4, 5, 6};
    gguf_builder b;
    gguf_builder_init(&b);
    put_pairs(&b);
    builder_add_tensor(&b, "matrix", 0, 3, 2, values);
    builder_add_tensor(&b, "vector", 1, 5, 0, NULL);
    gguf_builder_write(&b, out);
    gguf_builder_release(&b);
}

static gguf *open_ok(const buf *b) {
    gguf *g = NULL;
    err e = {0};
    if (gguf_open_memory(b->data, b->len, &g, &e))
        fail_msg("%s", e.message);
    return g;
}

static void integers_of_every_width_are_read(void **state) {
    (void)state;
    buf b = {0};
    uint64_t v = 0;
    small_file(&b);
    gguf *g = open_ok(&b);
    assert_true(gguf_get_u64(g, "a.u8", &v) && v == 200);
    assert_true(gguf_get_u64(g, "a.u16", &v) && v == 60000);
    assert_true(gguf_get_u64(g, "a.i16", &v) && v == 30000);
    assert_true(gguf_get_u64(g, "a.u32", &v) && v == 4000000000u);
    assert_true(gguf_get_u64(g, "a.u64", &v) && v == UINT64_MAX);
    assert_true(gguf_get_u64(g, "a.bool", &v) && v == 1);
    assert_false(gguf_get_u64(g, "a.i8", &v)); // negative
    assert_false(gguf_get_u64(g, "a.i64", &v));
    assert_false(gguf_get_u64(g, "a.f32", &v));
    assert_false(gguf_get_u64(g, "a.string", &v));
    assert_false(gguf_get_u64(g, "a.i32s", &v));
    assert_false(gguf_get_u64(g, "absent", &v));
    gguf_close(g);
    buf_release(&b);
}

static void numbers_are_read_as_doubles(void **state) {
    (void)state;
    buf b = {0};
    double v = 0;
    small_file(&b);
    gguf *g = open_ok(&b);
    assert_true(gguf_get_f64(g, "a.f32", &v) && v == 1.5);
    assert_true(gguf_get_f64(g, "a.f64", &v) && v == 0.1);
    assert_true(gguf_get_f64(g, "a.i8", &v) && v == -5);
    assert_true(gguf_get_f64(g, "a.i64", &v) && v == -9223372036854775808.0);
    assert_true(gguf_get_f64(g, "a.u64", &v) && v == 18446744073709551616.0);
    assert_false(gguf_get_f64(g, "a.bool", &v));
    assert_false(gguf_get_f64(g, "a.string", &v));
    gguf_close(g);
    buf_release(&b);
}

static void strings_bools_and_kinds_are_told_apart(void **state) {
    (void)state;
    buf b = {0};
    gguf_string s;
    gguf_type kind;
    bool flag = false;
    small_file(&b);
    gguf *g = open_ok(&b);
    assert_true(gguf_get_string(g, "a.string", &s));
    assert_int_equal(s.n, 4);
    assert_memory_equal(s.p, "text", 4);
    assert_false(gguf_get_string(g, "a.strings", &s));
    assert_true(gguf_get_bool(g, "a.bool", &flag) && flag);
    assert_false(gguf_get_bool(g, "a.u8", &flag));
    assert_true(gguf_has(g, "a.f64", &kind) && kind == GGUF_F64);
    assert_true(gguf_has(g, "a.strings", &kind) && kind == GGUF_ARRAY);
    assert_true(gguf_has(g, "a.u8", NULL));
    assert_false(gguf_has(g, "a.u", &kind)); // a prefix is another key
    assert_false(gguf_has(g, "a.u88", &kind));
    assert_false(gguf_has(g, "", &kind));
    assert_string_equal(gguf_type_name(GGUF_F64), "f64");
    gguf_close(g);
    buf_release(&b);
}

static void array_elements_are_found_and_none_past_the_end(void **state) {
    (void)state;
    buf b = {0};
    gguf_string s;
    gguf_type element;
    uint64_t n, v;
    double x;
    small_file(&b);
    gguf *g = open_ok(&b);
    assert_true(gguf_array(g, "a.strings", &element, &n));
    assert_true(element == GGUF_STRING && n == 3);
    assert_true(gguf_array_string(g, "a.strings", 2, &s) && s.n == 5);
    assert_memory_equal(s.p, "third", 5);
    assert_true(gguf_array_string(g, "a.strings", 1, &s) && s.n == 0);
    assert_false(gguf_array_string(g, "a.strings", 3, &s));
    assert_false(gguf_array_string(g, "a.strings", UINT64_MAX, &s));
    assert_false(gguf_array_string(g, "a.nothing", 0, &s));
    assert_false(gguf_array_string(g, "a.i32s", 0, &s));
    assert_true(gguf_array_u64(g, "a.i32s", 2, &v) && v == 9);
    assert_false(gguf_array_u64(g, "a.i32s", 1, &v)); // negative
    assert_true(gguf_array_f64(g, "a.i32s", 1, &x) && x == -8);
    assert_false(gguf_array_f64(g, "a.i32s", 3, &x));
    assert_false(gguf_array_u64(g, "a.strings", 0, &v));
    assert_false(gguf_array(g, "a.string", &element, &n));
    gguf_close(g);
    buf_release(&b);
}

static void tensors_are_found_with_shape_and_data(void **state) {
    (void)state;
    buf b = {0};
    small_file(&b);
    gguf *g = open_ok(&b);
    const gguf_tensor *t = gguf_find(g, "matrix");
    assert_int_equal(gguf_n_tensors(g), 2);
    assert_ptr_equal(t, gguf_tensor_at(g, 0));
    assert_true(t->n_dims == 2 && t->dims[0] == 3 && t->dims[1] == 2 && t->dims[2] == 1);
    assert_int_equal(t->bytes, 24);
    float last;
    memcpy(&last, (const char *)t->data + 20, sizeof last);
    assert_true(last == 6);
    assert_int_equal(gguf_find(g, "vector")->bytes, 10);
    assert_ptr_equal((const char *)gguf_find(g, "vector")->data + 10, b.data + b.len);
    assert_null(gguf_find(g, "matri"));
    assert_null(gguf_find(g, ""));
    assert_string_equal(gguf_tensor_type_name(14), "Q6_K");
    assert_string_equal(gguf_tensor_type_name(4), "?");
    gguf_close(g);
    buf_release(&b);
}

static void versions_2_and_3_and_every_sane_alignment_open(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++)
        for (uint32_t alignment = 8; alignment <= 65536; alignment *= 2) {
            gguf_builder b;
            buf out = {0};
            gguf_builder_init(&b);
            b.version = version;
            b.alignment = alignment;
            builder_u32(&b, "general.alignment", alignment);
            builder_add_tensor(&b, "one", 0, 3, 0, NULL);
            builder_add_tensor(&b, "two", 0, 3, 0, NULL);
            gguf_builder_write(&b, &out);
            gguf *g = open_ok(&out);
            assert_int_equal(gguf_version(g), version);
            assert_int_equal((const char *)gguf_find(g, "two")->data -
                                 (const char *)gguf_find(g, "one")->data,
                             alignment > 12 ? alignment : 16);
            gguf_close(g);
            buf_release(&out);
            gguf_builder_release(&b);
        }
}

static void a_file_without_keys_and_tensors_opens(void **state) {
    (void)state;
    buf out = {0};
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_write(&b, &out);
    gguf *g = open_ok(&out);
    assert_int_equal(gguf_n_tensors(g), 0);
    assert_null(gguf_find(g, "x"));
    assert_false(gguf_has(g, "x", NULL));
    gguf_close(g);
    buf_release(&out);
}

static void values_at_the_limits_are_accepted(void **state) {
    (void)state;
    buf out = {0};
    gguf_builder b;
    char name[65], key[65536];
    memset(name, 'n', 64);
    memset(key, 'k', 65535);
    name[64] = key[65535] = '\0';
    gguf_builder_init(&b);
    builder_u32(&b, key, 7);
    built_tensor *t = builder_add_tensor(&b, name, 0, 2, 3, NULL);
    t->n_dims = 4;
    t->dims[2] = t->dims[3] = 1;
    builder_add_tensor(&b, "right-behind", 0, 1, 0, NULL)->keep_offset = true;
    b.tensors[1].offset = 32;
    gguf_builder_write(&b, &out);
    gguf *g = open_ok(&out);
    uint64_t v = 0;
    assert_true(gguf_get_u64(g, key, &v) && v == 7);
    assert_int_equal(gguf_find(g, name)->n_dims, 4);
    assert_int_equal(gguf_unchanged(g, NULL), 0); // memory does not change
    gguf_close(g);
    buf_release(&out);
    gguf_builder_release(&b);
}

// Looks at everything that an open file offers, and reads every byte it points to.
static unsigned walk(const gguf *g) {
    static const char *const keys[] = {"a.strings", "a.i32s", "tokenizer.ggml.tokens",
                                       "tokenizer.ggml.merges", "tokenizer.ggml.token_type"};
    unsigned sum = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        for (uint64_t j = 0; j < t->bytes; j++)
            sum += ((const uint8_t *)t->data)[j];
    }
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        uint64_t n = 0, v = 0;
        double x = 0;
        gguf_string s = {0};
        gguf_array(g, keys[k], NULL, &n);
        for (uint64_t i = 0; i <= n; i++) {
            if (gguf_array_string(g, keys[k], i, &s))
                for (size_t j = 0; j < s.n; j++)
                    sum += (uint8_t)s.p[j];
            sum += gguf_array_u64(g, keys[k], i, &v) + gguf_array_f64(g, keys[k], i, &x);
        }
    }
    return sum;
}

// Opens a copy of exactly n bytes (so that sanitizers see a byte too far), as far as it goes.
// Returns whether it opened; an error has a message.
static bool opens(const void *p, size_t n, err *e) {
    uint8_t *copy = malloc(n + !n);
    gguf *g = NULL;
    model_shape s;
    memcpy(copy, p, n);
    *e = (err){0};
    bool ok = gguf_open_memory(copy, n, &g, e) == 0;
    assert_true(ok || (e->message[0] && e->code == ERR_FORMAT));
    if (ok) {
        err more = {0};
        walk(g);
        if (model_read_shape(g, &s, &more) || model_check_tensors(g, &s, &more))
            assert_true(more.message[0]);
    }
    gguf_close(g);
    free(copy);
    return ok;
}

static void a_file_cut_anywhere_is_refused(void **state) {
    (void)state;
    buf b = {0};
    err e;
    small_file(&b);
    for (size_t n = 0; n < b.len; n++)
        assert_false(opens(b.data, n, &e));
    assert_true(opens(b.data, b.len, &e));
    buf_release(&b);
}

static void a_model_cut_anywhere_is_refused(void **state) {
    (void)state;
    buf b = {0};
    err e;
    gguf_builder made;
    gguf_builder_init(&made);
    builder_small_model(&made, "qwen3", 1);
    gguf_builder_write(&made, &b);
    // Every byte of the head, then in strides: the data only has a size.
    for (size_t n = 0; n < b.len; n += n < 8192 ? 1 : 101)
        assert_false(opens(b.data, n, &e));
    assert_false(opens(b.data, b.len - 1, &e));
    assert_true(opens(b.data, b.len, &e));
    buf_release(&b);
    gguf_builder_release(&made);
}

static uint32_t draw(uint64_t *state) { // xorshift64*
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 0x2545f4914f6cdd1du) >> 32);
}

// One to eight damaged places a round: a flipped bit, or a number that is often a limit.
static void damage(uint8_t *p, size_t n, uint64_t *state) {
    static const uint64_t limits[] = {0,          1,          UINT8_MAX,  INT32_MAX,
                                      UINT32_MAX, INT64_MAX,  UINT64_MAX, UINT64_MAX - 31,
                                      1u << 31,   1ull << 61, 1ull << 63, 1ull << 32};
    for (uint32_t i = 1 + draw(state) % 8; i > 0; i--) {
        size_t at = draw(state) % n;
        if (draw(state) % 4) {
            p[at] ^= (uint8_t)(1u << (draw(state) % 8));
            continue;
        }
        uint64_t v = limits[draw(state) % (sizeof limits / sizeof limits[0])];
        size_t bytes = 1u << (draw(state) % 4);
        memcpy(p + at, &v, bytes < n - at ? bytes : n - at);
    }
}

static void damaged_files_never_do_harm(void **state) {
    (void)state;
    uint64_t seed = 20260724;
    buf small = {0}, tiny = {0};
    err e;
    gguf_builder made;
    size_t n_opened = 0, n_rounds = 12000;
    gguf_builder_init(&made);
    builder_small_model(&made, "llama", 1);
    gguf_builder_write(&made, &tiny);
    small_file(&small);
    for (size_t i = 0; i < n_rounds; i++) {
        const buf *from = i % 4 ? &small : &tiny;
        size_t head = from == &small ? small.len : 8192; // where structure is
        uint8_t *copy = malloc(from->len);
        memcpy(copy, from->data, from->len);
        damage(copy, head < from->len ? head : from->len, &seed);
        n_opened += opens(copy, from->len, &e);
        free(copy);
    }
    assert_true(n_opened > 0 && n_opened < n_rounds);
    print_message("%zu of %zu damaged files opened\n", n_opened, n_rounds);
    buf_release(&small);
    buf_release(&tiny);
    gguf_builder_release(&made);
}

// ---- files on disk

static void write_temporary(char *path, const buf *b) {
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b->data, b->len), b->len);
    close(fd);
}

static void the_head_survives_a_file_truncated_in_place(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-gguf-XXXXXX";
    buf b = {0};
    gguf *g = NULL;
    err e = {0};
    gguf_string s;
    small_file(&b);
    write_temporary(path, &b);
    assert_int_equal(gguf_open(path, &g, &e), 0);
    assert_int_equal(gguf_unchanged(g, &e), 0);
    assert_int_equal(truncate(path, 0), 0);
    assert_true(gguf_array_string(g, "a.strings", 2, &s)); // no SIGBUS
    assert_memory_equal(s.p, "third", 5);
    assert_non_null(gguf_find(g, "vector"));
    assert_int_equal(gguf_unchanged(g, &e), -1);
    assert_non_null(strstr(e.message, "changed while it was open"));
    gguf_close(g);
    unlink(path);
    buf_release(&b);
}

static void tensor_bytes_of_a_file_cut_short_are_an_error(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-gguf-XXXXXX";
    buf b = {0};
    gguf *g = NULL;
    err e = {0};
    uint8_t bytes[4];
    small_file(&b);
    write_temporary(path, &b);
    assert_int_equal(gguf_open(path, &g, &e), 0);
    const gguf_tensor *t = gguf_find(g, "vector");
    assert_int_equal(gguf_read(g, (size_t)(t - gguf_tensor_at(g, 0)), t->bytes - 4, bytes, 4, &e),
                     0);
    assert_memory_equal(bytes, (const uint8_t *)t->data + t->bytes - 4, 4);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(gguf_read(g, (size_t)(t - gguf_tensor_at(g, 0)), 0, bytes, 4, &e),
                     -1); // no SIGBUS
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "cannot read tensor 'vector': the file was cut short"));
    gguf_close(g);
    unlink(path);
    buf_release(&b);
}

static void what_was_checked_cannot_be_changed_by_a_writer(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-gguf-XXXXXX";
    buf b = {0};
    gguf *g = NULL;
    err e = {0};
    gguf_string s;
    small_file(&b);
    write_temporary(path, &b);
    assert_int_equal(gguf_open(path, &g, &e), 0);
    FILE *f = fopen(path, "r+");
    for (int i = 0; i < 1000; i++)
        fputc(0xff, f);
    fclose(f);
    assert_true(gguf_array_string(g, "a.strings", 2, &s) && s.n == 5);
    gguf_close(g);
    unlink(path);
    buf_release(&b);
}

static void a_file_written_to_is_noticed_though_its_size_stays(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-gguf-XXXXXX";
    const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    buf b = {0};
    gguf *g = NULL;
    err e = {0};
    small_file(&b);
    write_temporary(path, &b);
    assert_int_equal(gguf_open(path, &g, &e), 0);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    assert_int_equal(gguf_unchanged(g, &e), -1);
    assert_string_equal(e.message, "the file was written to while it was open");
    gguf_close(g);
    unlink(path);
    buf_release(&b);
}

// A sparse file of n_keys arrays, each of n elements of `bytes` bytes that nobody wrote.
static void write_sparse(char *path, uint64_t n_keys, uint32_t element, uint64_t n,
                         uint64_t bytes) {
    int fd = mkstemp(path);
    buf head = {0};
    assert_true(fd >= 0);
    buf_puts(&head, "GGUF");
    buf_put_u32(&head, 3);
    buf_put_u64(&head, 0);
    buf_put_u64(&head, n_keys);
    off_t at = 0;
    for (uint64_t k = 0; k < n_keys; k++) {
        buf_put_u64(&head, 2);
        buf_put_u16(&head, (uint16_t)(0x6161 + k)); // "aa", "ba", ...
        buf_put_u32(&head, GGUF_ARRAY);
        buf_put_u32(&head, element);
        buf_put_u64(&head, n);
        for (uint64_t i = 0; i < (element == GGUF_STRING ? n : 1); i++) {
            if (element == GGUF_STRING)
                buf_put_u64(&head, bytes);
            assert_int_equal(pwrite(fd, head.data, head.len, at), head.len);
            at += (off_t)(head.len + (element == GGUF_STRING ? bytes : n * bytes));
            buf_clear(&head);
        }
    }
    assert_int_equal(ftruncate(fd, at), 0);
    close(fd);
    buf_release(&head);
}

static void metadata_over_256_mib_is_refused(void **state) {
    (void)state;
    char numbers[] = "/tmp/tiergate-gguf-XXXXXX", strings[] = "/tmp/tiergate-gguf-XXXXXX";
    gguf *g = NULL;
    err e = {0};
    write_sparse(numbers, 3, GGUF_U64, 1 << 24, 8); // 128 MiB each
    assert_int_equal(gguf_open(numbers, &g, &e), -1);
    assert_non_null(strstr(e.message, "metadata is larger than 268435456 bytes"));
    unlink(numbers);
    write_sparse(strings, 1, GGUF_STRING, 6, 64 << 20); // 64 MiB each
    assert_int_equal(gguf_open(strings, &g, &e), -1);
    assert_non_null(strstr(e.message, "the array is larger than 268435456 bytes"));
    unlink(strings);
}

static void what_is_no_file_is_refused_by_name(void **state) {
    (void)state;
    char fifo[] = "/tmp/tiergate-fifo-XXXXXX";
    gguf *g = NULL;
    err e = {0};
    assert_int_equal(gguf_open("/nonexistent/x.gguf", &g, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "/nonexistent/x.gguf: cannot open: No such file"));
    assert_int_equal(gguf_open("/tmp", &g, &e), -1);
    assert_string_equal(e.message, "/tmp: not a regular file");
    assert_int_equal(gguf_open("/dev/zero", &g, &e), -1);
    assert_string_equal(e.message, "/dev/zero: not a regular file");
    close(mkstemp(fifo));
    unlink(fifo);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(gguf_open(fifo, &g, &e), -1); // and does not wait for a writer
    assert_non_null(strstr(e.message, "not a regular file"));
    unlink(fifo);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_of_every_width_are_read),
        cmocka_unit_test(numbers_are_read_as_doubles),
        cmocka_unit_test(strings_bools_and_kinds_are_told_apart),
        cmocka_unit_test(array_elements_are_found_and_none_past_the_end),
        cmocka_unit_test(tensors_are_found_with_shape_and_data),
        cmocka_unit_test(versions_2_and_3_and_every_sane_alignment_open),
        cmocka_unit_test(a_file_without_keys_and_tensors_opens),
        cmocka_unit_test(values_at_the_limits_are_accepted),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_model_cut_anywhere_is_refused),
        cmocka_unit_test(damaged_files_never_do_harm),
        cmocka_unit_test(the_head_survives_a_file_truncated_in_place),
        cmocka_unit_test(tensor_bytes_of_a_file_cut_short_are_an_error),
        cmocka_unit_test(what_was_checked_cannot_be_changed_by_a_writer),
        cmocka_unit_test(a_file_written_to_is_noticed_though_its_size_stays),
        cmocka_unit_test(metadata_over_256_mib_is_refused),
        cmocka_unit_test(what_is_no_file_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
