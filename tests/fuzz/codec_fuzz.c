// Everything router/ reads that others wrote, on arbitrary bytes: jobs, replies, journal lines with
// their JSON, records, cancel messages. What is read must be written to bytes that read the same.
// The first byte of an input says which.
#include "router/job.h"
#include "router/journal.h"
#include "router/queue.h"
#include "router/quota.h"
#include "router/reply.h"
#include "router/usage.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(bool is_so) {
    if (!is_so)
        abort();
}

static bool is_same(const buf *a, const buf *b) {
    return a->len == b->len && (!a->len || memcmp(a->data, b->data, a->len) == 0);
}

static void try_job(const uint8_t *p, size_t n, arena *a) {
    job j, again;
    buf once = {0}, twice = {0};
    if (job_decode(p, n, a, &j, NULL))
        return;
    job_encode(&j, &once);
    must(once.len == n && memcmp(once.data, p, n) == 0); // one way to write a job
    must(job_decode(once.data, once.len, a, &again, NULL) == 0);
    job_encode(&again, &twice);
    must(is_same(&once, &twice));
    buf_release(&once);
    buf_release(&twice);
}

static void try_reply(const uint8_t *p, size_t n, arena *a) {
    reply r, again;
    buf once = {0}, twice = {0};
    if (reply_decode(p, n, a, &r, NULL))
        return;
    reply_encode(&r, &once);
    must(reply_decode(once.data, once.len, a, &again, NULL) == 0);
    reply_encode(&again, &twice);
    must(is_same(&once, &twice));
    buf_release(&once);
    buf_release(&twice);
}

static void try_row(const char *text, size_t n) {
    usage_row row = {0}, again = {0};
    buf once = {0}, twice = {0};
    if (usage_row_parse(text, n, &row, NULL))
        return;
    usage_row_put(&row, &once);
    must(usage_row_parse(once.data, once.len, &again, NULL) == 0);
    usage_row_put(&again, &twice);
    must(is_same(&once, &twice));
    buf_release(&once);
    buf_release(&twice);
}

static void try_meta(const char *text, size_t n) {
    usage_meta m = {0}, again = {0};
    buf once = {0}, twice = {0};
    if (usage_meta_parse(text, n, &m, NULL))
        return;
    usage_meta_put(&m, &once);
    must(usage_meta_parse(once.data, once.len, &again, NULL) == 0);
    usage_meta_put(&again, &twice);
    must(is_same(&once, &twice));
    buf_release(&once);
    buf_release(&twice);
}

static void try_line(const char *line, size_t n) {
    char kind, id[ID_UUID_TEXT];
    const char *text;
    size_t n_text;
    err e = {0};
    if (journal_parse_line(line, n, &kind, id, &text, &n_text, &e))
        must(e.code == ERR_FORMAT);
    else
        must(text >= line && text + n_text == line + n);
}

static void try_record(const char *text, size_t n) {
    quota_record record;
    quota_read_record(text, n, &record, NULL);
}

static void try_cancel(const char *text, size_t n) {
    char id[ID_UUID_TEXT];
    int attempt;
    uint64_t run;
    if (queue_cancel_parse(text, n, id, &attempt, &run) == 0)
        must(attempt >= 1 && strlen(id) == ID_UUID_TEXT - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 1)
        return 0;
    arena a;
    arena_init(&a);
    const uint8_t *p = data + 1;
    const char *text = (const char *)p;
    switch (data[0] % 7) {
    case 0:
        try_job(p, n - 1, &a);
        break;
    case 1:
        try_reply(p, n - 1, &a);
        break;
    case 2:
        try_line(text, n - 1);
        break;
    case 3:
        try_meta(text, n - 1);
        break;
    case 4:
        try_row(text, n - 1);
        break;
    case 5:
        try_record(text, n - 1);
        break;
    default:
        try_cancel(text, n - 1);
    }
    arena_release(&a);
    return 0;
}
