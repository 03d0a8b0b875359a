// Reading the journal of an earlier life: which ids have no C, and how they ended. Runs once, at
// start-up, before any other thread. A line that a crash cut off, or a piece of disk that came back
// as zeros, fails its checksum and is skipped: the record in Redis is the other copy.
#include "router/journal_internal.h"
#include "base/file.h"
#include "base/log.h"
#include "router/wire.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define CRC_DIGITS 8
#define SEGMENT_MOST ((size_t)1 << 31)

// ---- lines: "CRC KIND ID[ TEXT]", the checksum over what follows it

static uint32_t checksum(const char *p, size_t n) {
    return (uint32_t)crc32(crc32(0, NULL, 0), (const Bytef *)p, (uInt)n);
}

void journal_format_line(buf *out, char kind, const char *id, const char *text) {
    size_t start = out->len;
    buf_puts(out, "00000000 ");
    buf_put(out, (char[]){kind, ' '}, 2);
    buf_puts(out, id);
    if (text) {
        buf_put(out, " ", 1);
        buf_puts(out, text);
    }
    size_t from = start + CRC_DIGITS + 1;
    char crc[CRC_DIGITS + 1];
    id_hex_u64(checksum(out->data + from, out->len - from), CRC_DIGITS, crc);
    memcpy(out->data + start, crc, CRC_DIGITS);
    buf_puts(out, "\n");
}

int journal_parse_line(const char *line, size_t n, char *kind, char id[ID_UUID_TEXT],
                       const char **text, size_t *n_text, err *e) {
    const size_t head = CRC_DIGITS + 3 + ID_UUID_TEXT - 1; // up to the end of the id
    uint8_t crc[4];
    char digits[CRC_DIGITS + 1] = "";
    if (n < head || line[CRC_DIGITS] != ' ')
        return err_set(e, ERR_FORMAT, NULL, "a journal line of %zu bytes is too short", n);
    memcpy(digits, line, CRC_DIGITS);
    const char *body = line + CRC_DIGITS + 1;
    uint32_t want = checksum(body, n - CRC_DIGITS - 1);
    if (id_unhex(digits, crc, 4) ||
        ((uint32_t)crc[0] << 24 | (uint32_t)crc[1] << 16 | (uint32_t)crc[2] << 8 | crc[3]) != want)
        return err_set(e, ERR_FORMAT, NULL, "a journal line has a wrong checksum");
    if (!memchr("AFC", body[0], 3) || body[1] != ' ' || !wire_is_uuid(body + 2, ID_UUID_TEXT - 1) ||
        (n > head && line[head] != ' '))
        return err_set(e, ERR_FORMAT, NULL, "a journal line is malformed");
    *kind = body[0];
    memcpy(id, body + 2, ID_UUID_TEXT - 1);
    id[ID_UUID_TEXT - 1] = '\0';
    *text = n > head ? line + head + 1 : line + n;
    *n_text = n > head ? n - head - 1 : 0;
    return 0;
}

// ---- segments

void journal_file_path(const char *dir, uint64_t number, char *out, size_t n) {
    snprintf(out, n, "%s/%016" PRIx64 ".log", dir, number);
}

journal_file *journal_file_find(journal_files *l, uint64_t number) {
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].number == number)
            return &l->items[i];
    return NULL;
}

void journal_file_add(journal_files *l, journal_file s) {
    l->items = realloc(l->items, (l->n + 1) * sizeof s);
    if (!l->items)
        fatal("out of memory for the journal");
    l->items[l->n++] = s;
}

static int by_number(const void *a, const void *b) {
    const journal_file *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

static int list_segments(const char *dir, journal_files *l, err *e) {
    DIR *d = opendir(dir);
    if (!d)
        return err_set(e, ERR_IO, NULL, "%s: %s", dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(d));) {
        uint64_t number;
        int end = 0;
        if (sscanf(entry->d_name, "%16" SCNx64 ".log%n", &number, &end) == 1 && end == 20 &&
            !entry->d_name[end])
            journal_file_add(l, (journal_file){.number = number});
    }
    closedir(d);
    if (l->n)
        qsort(l->items, l->n, sizeof *l->items, by_number);
    return 0;
}

// ---- ids, in a hash table that only grows

typedef struct open_ids {
    journal_open_id **slots; // open addressing; a committed id stays, with segment 0
    size_t n, cap;
} open_ids;

static size_t slot_of(const open_ids *t, const char *id) {
    size_t at = checksum(id, ID_UUID_TEXT - 1) & (t->cap - 1);
    while (t->slots[at] && strcmp(t->slots[at]->row.id, id) != 0)
        at = (at + 1) & (t->cap - 1);
    return at;
}

static void grow(open_ids *t) {
    open_ids bigger = {.n = t->n, .cap = t->cap ? t->cap * 2 : 1024};
    bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
    if (!bigger.slots)
        fatal("out of memory for the journal's ids");
    for (size_t i = 0; i < t->cap; i++)
        if (t->slots[i])
            bigger.slots[slot_of(&bigger, t->slots[i]->row.id)] = t->slots[i];
    free(t->slots);
    *t = bigger;
}

static journal_open_id *enter(open_ids *t, const char *id) {
    if (2 * t->n >= t->cap)
        grow(t);
    size_t at = slot_of(t, id);
    if (!t->slots[at]) {
        journal_open_id *made = calloc(1, sizeof *made);
        if (!made)
            fatal("out of memory for the journal's ids");
        memcpy(made->row.id, id, ID_UUID_TEXT);
        t->slots[at] = made;
        t->n++;
    }
    return t->slots[at];
}

static void release(open_ids *t) {
    for (size_t i = 0; i < t->cap; i++)
        free(t->slots[i]);
    free(t->slots);
}

// ---- the replay

static int take_line(open_ids *t, uint64_t number, const char *line, size_t n) {
    char kind, id[ID_UUID_TEXT];
    const char *text;
    size_t n_text;
    usage_row row = {0};
    if (journal_parse_line(line, n, &kind, id, &text, &n_text, NULL))
        return -1;
    if (kind == 'A') {
        if (usage_meta_parse(text, n_text, &row.meta, NULL))
            return -1;
        journal_open_id *x = enter(t, id);
        x->row.meta = row.meta;
        x->segment = number;
        return 0;
    }
    journal_open_id *x = enter(t, id);
    if (kind == 'C') {
        x->segment = 0;
        return 0;
    }
    row.meta = x->row.meta;
    memcpy(row.id, id, ID_UUID_TEXT);
    if (usage_row_parse(text, n_text, &row, NULL))
        return -1;
    x->row = row;
    x->is_finished = true;
    return 0;
}

static int read_segment(const char *dir, journal_file *s, open_ids *t, int *n_bad, err *e) {
    char path[512];
    buf text = {0};
    journal_file_path(dir, s->number, path, sizeof path);
    if (file_read(path, SEGMENT_MOST, &text, e)) {
        buf_release(&text);
        return -1;
    }
    s->bytes = (int64_t)text.len;
    for (size_t at = 0; at < text.len;) {
        const char *line = text.data + at;
        const char *end = memchr(line, '\n', text.len - at);
        size_t n = end ? (size_t)(end - line) : text.len - at;
        if (n > 0 && (!end || take_line(t, s->number, line, n)))
            ++*n_bad;
        at += n + 1;
    }
    buf_release(&text);
    return 0;
}

int journal_replay(const char *dir, journal_files *l,
                   void (*found)(void *ctx, const journal_open_id *id), void *ctx, err *e) {
    open_ids t = {0};
    int n_bad = 0, n_found = 0;
    int rc = list_segments(dir, l, e);
    for (size_t i = 0; !rc && i < l->n; i++)
        rc = read_segment(dir, &l->items[i], &t, &n_bad, e);
    for (size_t i = 0; !rc && i < t.cap; i++) {
        journal_file *s = t.slots[i] ? journal_file_find(l, t.slots[i]->segment) : NULL;
        if (!s)
            continue;
        s->n_open++;
        n_found++;
        found(ctx, t.slots[i]);
    }
    if (!rc && (n_found || n_bad))
        log_event(LOG_INFO, "journal.replayed", "{s:i,s:i}", "open", n_found, "bad_lines", n_bad);
    release(&t);
    return rc;
}
