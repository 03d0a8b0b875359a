// Safetensors files: what a good one says, and that every way of being malformed is refused with
// its line and without a byte read outside the file.
#include "model/safetensors.h"
#include "base/buf.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

// The file at the end of a mapping whose next page cannot be read: one byte too far is a crash.
typedef struct fenced {
    uint8_t *base, *p;
    size_t n_mapped;
} fenced;

static fenced fence(const void *p, size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page) / page * page;
    uint8_t *base =
        mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    assert_int_equal(mprotect(base + body, page, PROT_NONE), 0);
    memcpy(base + body - n, p, n);
    return (fenced){base, base + body - n, body + page};
}

static void put_file(buf *out, const char *header, size_t n_data) {
    buf_put_u64(out, strlen(header));
    buf_puts(out, header);
    for (size_t i = 0; i < n_data; i++)
        buf_put_u8(out, (uint8_t)(i + 1));
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A "\"a\":" T("\"F32\"", "[2,3]", "[0,24]")
#define B "\"b\":" T("\"BF16\"", "[4]", "[24,32]")

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"}," B "," A
    ",\"c\":" T("\"I64\"", "[]", "[32,40]") ",\"none\":" T("\"F16\"", "[0,7]", "[32,32]") "}   ";

static void a_good_file_says_what_it_holds(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    safetensors *f = NULL;
    put_file(&b, good, 40);
    if (safetensors_open_memory(b.data, b.len, &f, &e))
        fail_msg("%s", e.message);
    assert_int_equal(safetensors_count(f), 4);
    assert_string_equal(safetensors_at(f, 0)->name, "a");
    const safetensor *t = safetensors_find(f, "b");
    assert_string_equal(t->dtype, "BF16");
    assert_int_equal(t->n_dims, 1);
    assert_int_equal(t->dims[0], 4);
    assert_int_equal(t->dims[1], 1);
    assert_int_equal(t->bytes, 8);
    assert_int_equal(*(const uint8_t *)t->data, 25);
    assert_int_equal(safetensors_find(f, "c")->n_dims, 0);
    assert_int_equal(safetensors_find(f, "none")->bytes, 0);
    assert_null(safetensors_find(f, "d"));
    assert_null(safetensors_find(f, "__metadata__"));
    safetensors_close(f);
    buf_release(&b);
}

typedef struct kind {
    const char *header;
    size_t n_data;
    const char *expect;
} kind;

static const kind kinds[] = {
    {"", 0, "header of 0 bytes"},
    {"{", 0, "header of 1 bytes"},
    {" {}", 0, "does not begin with '{'"},
    {"[]", 0, "does not begin with '{'"},
    {"{} x", 0, "not JSON"},
    {"{}{}", 0, "not JSON"},
    {"{\"a\"}", 0, "not JSON"},
    {"{\"a\":}", 0, "not JSON"},
    {"{\"a\":\"\xff\"}", 0, "not JSON"},
    {"{\"\\u0000\":1}", 0, "not JSON"},
    {"{\"a\":1e999}", 0, "not JSON"},
    {"{" A "," A "}", 24, "not JSON"}, // a name twice
    {"{}", 1, "1 bytes stand behind the last tensor"},
    {"{" A "}", 23, "is the file cut off?"},
    {"{" A "}", 25, "1 bytes stand behind the last tensor"},
    {"{" B "}", 32, "tensor 'b' begins at offset"},
    {"{\"\":" T("\"U8\"", "[1]", "[0,1]") "}", 1, "has no name"},
    {"{\"a b\":" T("\"U8\"", "[1]", "[0,1]") "}", 1, "has no name"},
    {"{\"\xc3\xa4\":" T("\"U8\"", "[1]", "[0,1]") "}", 1, "has no name"},
    {"{\"a\":1}", 0, "no object of dtype"},
    {"{\"a\":{}}", 0, "no object of dtype"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
     "no object of dtype"},
    {"{\"a\":{\"x\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is missing"},
    {"{\"a\":{\"dtype\":\"U8\",\"x\":[1],\"data_offsets\":[0,1]}}", 1, "shape is missing"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"x\":[0,1]}}", 1, "data_offsets is missing"},
    {"{\"a\":" T("1", "[1]", "[0,1]") "}", 1, "dtype is missing"},
    {"{\"a\":" T("\"Q4_0\"", "[1]", "[0,1]") "}", 1, "dtype is none"},
    {"{\"a\":" T("\"bf16\"", "[1]", "[0,2]") "}", 2, "dtype is none"},
    {"{\"a\":" T("\"U8\"", "1", "[0,1]") "}", 1, "shape is missing"},
    {"{\"a\":" T("\"U8\"", "[1,1,1,1,1]", "[0,1]") "}", 1, "more than 4 dimensions"},
    {"{\"a\":" T("\"U8\"", "[-1]", "[0,1]") "}", 1, "a dimension is no whole number"},
    {"{\"a\":" T("\"U8\"", "[1.0]", "[0,1]") "}", 1, "a dimension is no whole number"},
    {"{\"a\":" T("\"U8\"", "[\"1\"]", "[0,1]") "}", 1, "a dimension is no whole number"},
    {"{\"a\":" T("\"U8\"", "[2147483648]", "[0,1]") "}", 1, "a dimension is no whole number"},
    {"{\"a\":" T("\"U8\"", "[18446744073709551617]", "[0,1]") "}", 1, "not JSON"},
    {"{\"a\":" T("\"F64\"", "[2147483647,2147483647]", "[0,1]") "}", 1, "more than 2^64 bytes"},
    {"{\"a\":" T("\"U8\"", "[65536,65536,65536,65536]", "[0,0]") "}", 0, "more than 2^64 bytes"},
    {"{\"a\":" T("\"U8\"", "[2]", "[0,1]") "}", 1, "1 bytes of data where its shape"},
    {"{\"a\":" T("\"F32\"", "[1]", "[0,2]") "}", 2, "2 bytes of data where its shape"},
    {"{\"a\":" T("\"U8\"", "[]", "[0,0]") "}", 0, "0 bytes of data where its shape"},
    {"{\"a\":" T("\"U8\"", "[1]", "[0]") "}", 1, "data_offsets is missing"},
    {"{\"a\":" T("\"U8\"", "[1]", "[0,1,2]") "}", 1, "data_offsets is missing"},
    {"{\"a\":" T("\"U8\"", "[1]", "[0,1.0]") "}", 1, "data_offsets is missing"},
    {"{\"a\":" T("\"U8\"", "[1]", "[-1,0]") "}", 1, "data_offsets are -1 and 0"},
    {"{\"a\":" T("\"U8\"", "[1]", "[1,0]") "}", 1, "data_offsets are 1 and 0"},
    {"{\"a\":" T("\"U8\"", "[1]", "[1,2]") "}", 1, "data_offsets are 1 and 2"},
    {"{\"a\":" T("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]") "}", 1,
     "is the file cut off?"},
    {"{\"a\":" T("\"U8\"", "[2]", "[0,2]") ",\"b\":" T("\"U8\"", "[2]", "[1,3]") "}", 3,
     "before the end of what precedes it"},
    {"{\"a\":" T("\"U8\"", "[1]", "[0,1]") ",\"b\":" T("\"U8\"", "[1]", "[2,3]") "}", 3,
     "behind the end of what precedes it"},
    {"{\"a\":" T("\"U8\"", "[2]", "[0,2]") ",\"b\":" T("\"U8\"", "[2]", "[0,2]") "}", 2,
     "before the end of what precedes it"},
    {"{\"__metadata__\":1}", 0, "__metadata__ is no object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ holds something"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, "__metadata__ holds something"},
};

static bool is_refused(const char *what, const void *p, size_t n, const char *expect) {
    fenced f = fence(p, n);
    safetensors *s = NULL;
    err e = {0};
    bool fine = safetensors_open_memory(f.p, n, &s, &e) && strstr(e.message, expect) &&
                e.code == ERR_FORMAT;
    for (const char *c = e.message; *c; c++)
        fine &= (unsigned char)*c >= ' ' && (unsigned char)*c <= '~';
    if (!fine)
        print_error("%s: \"%s\", expected \"%s\"\n", what, e.message, expect);
    safetensors_close(s);
    munmap(f.base, f.n_mapped);
    return fine;
}

static void each_malformed_kind_is_refused_with_its_line(void **state) {
    (void)state;
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        buf b = {0};
        put_file(&b, kinds[i].header, kinds[i].n_data);
        n_wrong += !is_refused(kinds[i].header, b.data, b.len, kinds[i].expect);
        buf_release(&b);
    }
    assert_int_equal(n_wrong, 0);
}

static void a_file_cut_short_anywhere_is_refused(void **state) {
    (void)state;
    buf b = {0};
    put_file(&b, good, 40);
    for (size_t n = 0; n < b.len; n++)
        assert_true(is_refused("cut", b.data, n,
                               n < 8                     ? "the header's length alone takes 8"
                               : n < 8 + sizeof good - 1 ? "is the file cut off?"
                                                         : ""));
    buf_release(&b);
}

static void the_length_of_the_header_is_no_promise(void **state) {
    (void)state;
    static const uint64_t lengths[] = {
        0, 1, 1u << 30, (uint64_t)1 << 32, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        buf b = {0};
        buf_put_u64(&b, lengths[i]);
        buf_puts(&b, "{}");
        assert_true(is_refused("length", b.data, b.len, "claims a header of"));
        buf_release(&b);
    }
}

static void depth_is_limited_before_anything_is_parsed(void **state) {
    (void)state;
    buf header = {0}, b = {0};
    buf_puts(&header, "{\"a\":");
    for (int i = 0; i < 100000; i++)
        buf_puts(&header, "[");
    put_file(&b, header.data, 0);
    assert_true(is_refused("depth", b.data, b.len, "nested deeper than 64 levels"));
    buf_release(&b);
    buf_release(&header);
}

// Whatever byte of the header is changed: an answer or a line, and nothing read outside.
static void any_changed_byte_ends_in_an_answer_or_a_line(void **state) {
    (void)state;
    static const char other[] = "\0\"[]{},:09-.e\\ \x7f\xff";
    buf b = {0};
    put_file(&b, good, 40);
    for (size_t i = 0; i < 8 + sizeof good - 1; i++)
        for (size_t k = 0; k < sizeof other - 1; k++) {
            char was = b.data[i];
            safetensors *s = NULL;
            err e = {0};
            b.data[i] = other[k];
            fenced f = fence(b.data, b.len);
            if (safetensors_open_memory(f.p, b.len, &s, &e))
                assert_true(e.code == ERR_FORMAT && e.message[0]);
            safetensors_close(s);
            munmap(f.base, f.n_mapped);
            b.data[i] = was;
        }
    buf_release(&b);
}

static void a_file_that_changes_is_noticed_and_never_a_crash(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-safetensors-XXXXXX";
    int fd = mkstemp(path);
    buf b = {0};
    err e = {0};
    uint8_t byte;
    safetensors *f = NULL;
    put_file(&b, good, 40);
    assert_int_equal(write(fd, b.data, b.len), (ssize_t)b.len);
    assert_int_equal(safetensors_open(path, &f, &e), 0);
    assert_int_equal(safetensors_unchanged(f, &e), 0);
    assert_int_equal(safetensors_read(f, b.len - 1, &byte, 1, &e), 0);
    assert_int_equal(byte, 40);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(safetensors_unchanged(f, &e), -1);
    assert_int_equal(safetensors_read(f, b.len - 1, &byte, 1, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    safetensors_close(f);
    assert_int_equal(safetensors_open(path, &f, &e), -1);
    assert_non_null(strstr(e.message, "it is empty"));
    close(fd);
    unlink(path);
    assert_int_equal(safetensors_open("/tmp", &f, &e), -1);
    assert_non_null(strstr(e.message, "not a regular file"));
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_says_what_it_holds),
        cmocka_unit_test(each_malformed_kind_is_refused_with_its_line),
        cmocka_unit_test(a_file_cut_short_anywhere_is_refused),
        cmocka_unit_test(the_length_of_the_header_is_no_promise),
        cmocka_unit_test(depth_is_limited_before_anything_is_parsed),
        cmocka_unit_test(any_changed_byte_ends_in_an_answer_or_a_line),
        cmocka_unit_test(a_file_that_changes_is_noticed_and_never_a_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
