// Every malformed file of the catalogue is refused with one clear line, by memory and by path.
#include "model/gguf.h"
#include "model/model.h"
#include "tests/support/gguf_malformed.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
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

static int open_all(const void *p, size_t n, err *e) {
    gguf *g = NULL;
    tokenizer *t = NULL;
    model_shape s;
    int rc = gguf_open_memory(p, n, &g, e);
    if (!rc)
        rc = model_read_shape(g, &s, e);
    if (!rc)
        rc = model_check_tensors(g, &s, e);
    if (!rc)
        rc = tokenizer_open(g, &t, e);
    tokenizer_close(t);
    gguf_close(g);
    return rc;
}

// Says what is wrong with the refusal and returns false; the test goes on, to name them all.
static bool is_one_clear_line(const malformed *m, int rc, const err *e) {
    const char *wrong = NULL;
    if (rc == 0)
        wrong = "was accepted";
    else if (!strstr(e->message, m->expect))
        wrong = "has another message";
    else if (e->code != ERR_FORMAT && e->code != ERR_UNSUPPORTED)
        wrong = "has another code";
    for (const char *c = e->message; *c; c++)
        if ((unsigned char)*c < ' ')
            wrong = "has a control character in its message";
    if (wrong)
        print_error("%s %s: \"%s\", code %d; expected \"%s\"\n", m->name, wrong, e->message,
                    (int)e->code, m->expect);
    return !wrong;
}

static void each_kind_is_refused_with_its_line(void **state) {
    (void)state;
    size_t n_wrong = 0;
    for (size_t i = 0; i < malformed_count(); i++) {
        const malformed *m = malformed_at(i);
        buf b = {0};
        err e = {0};
        malformed_write(m, &b);
        fenced f = fence(b.data, b.len);
        n_wrong += !is_one_clear_line(m, open_all(f.p, b.len, &e), &e);
        munmap(f.base, f.n_mapped);
        buf_release(&b);
    }
    assert_int_equal(n_wrong, 0);
}

static void each_kind_is_refused_as_a_file_naming_its_path(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-malformed-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    size_t n_wrong = 0;
    for (size_t i = 0; i < malformed_count(); i++) {
        const malformed *m = malformed_at(i);
        buf b = {0}, summary = {0};
        err e = {0};
        malformed_write(m, &b);
        FILE *out = fopen(path, "w");
        assert_non_null(out);
        assert_int_equal(fwrite(b.data, 1, b.len, out), b.len);
        fclose(out);
        int rc = model_check(path, &summary, &e);
        malformed by_path = *m;
        if (b.len < 24) // a file that short is not even looked into
            by_path.expect = "not a GGUF file";
        n_wrong += !is_one_clear_line(&by_path, rc, &e);
        assert_int_equal(strncmp(e.message, path, strlen(path)), 0);
        assert_int_equal(summary.len, 0);
        buf_release(&summary);
        buf_release(&b);
    }
    unlink(path);
    assert_int_equal(n_wrong, 0);
}

static void kinds_are_distinct_and_more_than_two_hundred(void **state) {
    (void)state;
    size_t n = malformed_count();
    assert_true(n >= 200);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(malformed_at(i)->name, malformed_at(j)->name) == 0)
                fail_msg("%s is there twice", malformed_at(i)->name);
    print_message("%zu kinds of malformed file\n", n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_are_distinct_and_more_than_two_hundred),
        cmocka_unit_test(each_kind_is_refused_with_its_line),
        cmocka_unit_test(each_kind_is_refused_as_a_file_naming_its_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
