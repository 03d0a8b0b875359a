// The journal on a real disk: what is read back, what a crash may have torn, when segments go, when
// nothing is accepted any more.
#include "base/clock.h"
#include "base/file.h"
#include "router/journal.h"
#include "tests/support/servers.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

static char dir[256];

static int setup(void **state) {
    (void)state;
    static int n;
    snprintf(dir, sizeof dir, "%s/journal%d", test_dir(), n++);
    return 0;
}

typedef struct found_ids {
    journal_open_id ids[8];
    int n;
} found_ids;

static void on_found(void *ctx, const journal_open_id *id) {
    found_ids *f = ctx;
    if (f->n < 8)
        f->ids[f->n] = *id;
    f->n++;
}

static journal *open_journal(int64_t limit, found_ids *f) {
    journal *j = NULL;
    err e = {0};
    memset(f, 0, sizeof *f);
    if (journal_open(dir, limit, on_found, f, &j, &e))
        fail_msg("%s", e.message);
    return j;
}

static usage_row make_row(void) {
    usage_row r = {.outcome = "ok",
                   .attempts = 2,
                   .prompt = 5,
                   .completion = 7,
                   .money = 260,
                   .first_token_ms = -1};
    id_uuid7(r.id);
    memcpy(r.meta.tenant, r.id, sizeof r.id);
    memcpy(r.meta.user, r.id, sizeof r.id);
    memcpy(r.meta.key, r.id, sizeof r.id);
    snprintf(r.meta.model, sizeof r.meta.model, "small \"m\"");
    r.meta.accepted_ms = 1795514430000;
    return r;
}

static journal_mark accept(journal *j, const usage_row *r) {
    journal_mark mark;
    err e = {0};
    if (journal_accept(j, r->id, &r->meta, &mark, &e))
        fail_msg("%s", e.message);
    return mark;
}

static int count_segments(void) {
    char pattern[300];
    glob_t g;
    snprintf(pattern, sizeof pattern, "%s/*.log", dir);
    int n = glob(pattern, 0, NULL, &g) ? 0 : (int)g.gl_pathc;
    globfree(&g);
    return n;
}

static void newest_segment(char *out, size_t n) {
    char pattern[300];
    glob_t g;
    snprintf(pattern, sizeof pattern, "%s/*.log", dir);
    assert_int_equal(glob(pattern, 0, NULL, &g), 0);
    snprintf(out, n, "%s", g.gl_pathv[g.gl_pathc - 1]);
    globfree(&g);
}

// ---- reading back

static void what_has_no_commit_is_found_as_it_was_written(void **state) {
    (void)state;
    found_ids f;
    usage_row accepted = make_row(), finished = make_row(), done = make_row();
    journal *j = open_journal(1 << 30, &f);
    assert_int_equal(f.n, 0);
    accept(j, &accepted);
    accept(j, &finished);
    journal_mark mark = accept(j, &done);
    assert_int_equal(journal_finish(j, &finished, NULL), 0);
    assert_int_equal(journal_finish(j, &done, NULL), 0);
    journal_commit(j, &(journal_closed){done.id, mark.segment}, 1);
    journal_close(j);
    j = open_journal(1 << 30, &f);
    assert_int_equal(f.n, 2);
    for (int i = 0; i < 2; i++) {
        const usage_row *want = f.ids[i].is_finished ? &finished : &accepted;
        assert_string_equal(f.ids[i].row.id, want->id);
        assert_string_equal(f.ids[i].row.meta.model, want->meta.model);
        assert_true(f.ids[i].row.meta.accepted_ms == want->meta.accepted_ms);
        if (f.ids[i].is_finished)
            assert_true(f.ids[i].row.completion == 7 && f.ids[i].row.money == 260 &&
                        f.ids[i].row.first_token_ms == -1);
    }
    assert_true(f.ids[0].is_finished != f.ids[1].is_finished);
    journal_closed both[] = {{f.ids[0].row.id, f.ids[0].segment},
                             {f.ids[1].row.id, f.ids[1].segment}};
    journal_commit(j, both, 2);
    journal_close(j);
    j = open_journal(1 << 30, &f);
    assert_int_equal(f.n, 0);
    journal_close(j);
}

static void a_torn_tail_loses_the_torn_line_alone(void **state) {
    (void)state;
    char path[300];
    found_ids f;
    usage_row one = make_row(), two = make_row();
    journal *j = open_journal(1 << 30, &f);
    accept(j, &one);
    accept(j, &two);
    journal_close(j);
    newest_segment(path, sizeof path);
    buf text = {0};
    assert_int_equal(file_read(path, 1 << 20, &text, NULL), 0);
    assert_int_equal(truncate(path, (off_t)text.len - 3), 0);
    j = open_journal(1 << 30, &f);
    assert_int_equal(f.n, 1);
    assert_string_equal(f.ids[0].row.id, one.id);
    journal_close(j);
    buf_release(&text);
}

static void a_page_of_zeros_loses_no_line_behind_it(void **state) {
    (void)state;
    static const char zeros[4096];
    char path[300];
    found_ids f;
    usage_row one = make_row(), two = make_row();
    journal *j = open_journal(1 << 30, &f);
    accept(j, &one);
    newest_segment(path, sizeof path);
    FILE *raw = fopen(path, "ab");
    assert_int_equal(fwrite(zeros, 1, sizeof zeros, raw), sizeof zeros);
    fputc('\n', raw);
    fclose(raw);
    accept(j, &two);
    journal_close(j);
    j = open_journal(1 << 30, &f);
    assert_int_equal(f.n, 2);
    journal_close(j);
}

static void every_changed_byte_of_a_line_is_noticed(void **state) {
    (void)state;
    char path[300], kind, id[ID_UUID_TEXT];
    const char *rest;
    size_t n_rest;
    found_ids f;
    usage_row one = make_row();
    journal *j = open_journal(1 << 30, &f);
    accept(j, &one);
    journal_close(j);
    newest_segment(path, sizeof path);
    buf text = {0};
    assert_int_equal(file_read(path, 1 << 20, &text, NULL), 0);
    size_t n = text.len - 1;
    assert_int_equal(journal_parse_line(text.data, n, &kind, id, &rest, &n_rest, NULL), 0);
    assert_int_equal(kind, 'A');
    for (size_t i = 0; i < n; i++) {
        text.data[i] ^= 4;
        assert_int_equal(journal_parse_line(text.data, n, &kind, id, &rest, &n_rest, NULL), -1);
        text.data[i] ^= 4;
        assert_int_equal(journal_parse_line(text.data, i, &kind, id, &rest, &n_rest, NULL), -1);
    }
    buf_release(&text);
}

// ---- segments

static void segments_go_when_all_their_ids_are_committed_the_oldest_first(void **state) {
    (void)state;
    found_ids f;
    usage_row first = make_row();
    journal *j = open_journal(1 << 30, &f);
    journal_mark of_first = accept(j, &first);
    uint64_t last = of_first.segment;
    while (last < of_first.segment + 2) { // three segments of 8 MiB
        usage_row r = make_row();
        journal_mark mark = accept(j, &r);
        journal_commit(j, &(journal_closed){r.id, mark.segment}, 1);
        last = mark.segment;
    }
    assert_int_equal(count_segments(), 3); // the first id keeps all behind it
    int64_t full = journal_bytes(j);
    journal_commit(j, &(journal_closed){first.id, of_first.segment}, 1);
    assert_int_equal(count_segments(), 1);
    assert_true(journal_bytes(j) < full / 4);
    journal_close(j);
}

static void a_full_journal_accepts_nothing_until_something_went(void **state) {
    (void)state;
    found_ids f;
    usage_row r = make_row();
    journal_mark mark;
    err e = {0};
    journal *j = open_journal(600, &f);
    mark = accept(j, &r);
    accept(j, &r);
    assert_string_equal(journal_trouble(j), "the journal is full");
    assert_int_equal(journal_accept(j, r.id, &r.meta, &mark, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_int_equal(journal_finish(j, &r, &e), 0); // what runs goes on
    journal_close(j);
}

static void a_second_process_on_the_same_journal_is_refused(void **state) {
    (void)state;
    found_ids f;
    journal *j = open_journal(1 << 30, &f), *second = NULL;
    err e = {0};
    assert_int_equal(journal_open(dir, 1 << 30, on_found, &f, &second, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "another gateway"));
    journal_close(j);
}

// ---- durability

typedef struct ear {
    loop *l;
    journal *j;
    uint64_t heard;
} ear;

static ear listener;

static void on_durable(router *r, void *arg) {
    (void)arg;
    if (!r)
        return;
    listener.heard = journal_durable(listener.j);
    loop_stop(listener.l);
}

static void give_up(void *ctx) { loop_stop(ctx); }

static void what_was_accepted_is_told_durable_within_milliseconds(void **state) {
    (void)state;
    found_ids f;
    listener = (ear){.l = loop_new(), .j = open_journal(1 << 30, &f)};
    mailbox *m = mailbox_new(listener.l, (router *)(void *)&listener); // only passed through
    journal_watch *w = journal_watch_new(listener.j, m, on_durable);
    for (int i = 0; i < 20; i++) {
        usage_row r = make_row();
        journal_mark mark = accept(listener.j, &r);
        journal_want(listener.j, w, mark.end);
        loop_timer *end = loop_timer_add(listener.l, 2000, true, give_up, listener.l);
        while (listener.heard < mark.end) {
            uint64_t before = listener.heard;
            loop_run(listener.l);
            assert_true(listener.heard > before);
            if (listener.heard < mark.end)
                journal_want(listener.j, w, mark.end);
        }
        loop_timer_remove(listener.l, end);
    }
    journal_watch_free(listener.j, w);
    mailbox_close(m);
    journal_close(listener.j);
    loop_free(listener.l);
}

// A machine that ran out of descriptors for a moment must not end the journal for ever.
static void lines_become_durable_without_a_descriptor_to_spare(void **state) {
    (void)state;
    found_ids f;
    struct rlimit before, none;
    journal *j = open_journal(1 << 30, &f);
    usage_row r = make_row();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    journal_mark mark = accept(j, &r);
    for (int i = 0; i < 500 && journal_durable(j) < mark.end && !journal_has_failed(j); i++)
        clock_sleep_ms(10);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_false(journal_has_failed(j));
    assert_true(journal_durable(j) >= mark.end);
    journal_close(j);
}

int main(void) {
#define JOURNAL(test) cmocka_unit_test_setup(test, setup)
    const struct CMUnitTest tests[] = {
        JOURNAL(what_has_no_commit_is_found_as_it_was_written),
        JOURNAL(a_torn_tail_loses_the_torn_line_alone),
        JOURNAL(a_page_of_zeros_loses_no_line_behind_it),
        JOURNAL(every_changed_byte_of_a_line_is_noticed),
        JOURNAL(segments_go_when_all_their_ids_are_committed_the_oldest_first),
        JOURNAL(a_full_journal_accepts_nothing_until_something_went),
        JOURNAL(a_second_process_on_the_same_journal_is_refused),
        JOURNAL(what_was_accepted_is_told_durable_within_milliseconds),
        JOURNAL(lines_become_durable_without_a_descriptor_to_spare),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
