// Parts of the journal that its two files share.
#ifndef ROUTER_JOURNAL_INTERNAL_H
#define ROUTER_JOURNAL_INTERNAL_H
#include "base/buf.h"
#include "router/journal.h"

typedef struct journal_file { // one file, DIR/<16 hexadecimal digits>.log
    uint64_t number;
    int64_t bytes;
    int64_t n_open; // ids accepted here that have no C yet
} journal_file;

typedef struct journal_files { // ascending numbers
    journal_file *items;
    size_t n;
} journal_files;

void journal_file_path(const char *dir, uint64_t number, char *out, size_t n);
journal_file *journal_file_find(journal_files *l, uint64_t number);
void journal_file_add(journal_files *l, journal_file s);

// Reads all segments of dir into l and tells what is open. Lines that are torn or not ours are
// counted and skipped.
int journal_replay(const char *dir, journal_files *l,
                   void (*found)(void *ctx, const journal_open_id *id), void *ctx, err *e);
void journal_format_line(buf *out, char kind, const char *id, const char *text);

#endif
