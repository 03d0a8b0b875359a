// Command-line options: one table row per option drives parsing and --help.
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H
#include <stdbool.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"

typedef enum option_kind { OPTION_FLAG, OPTION_TEXT, OPTION_INT, OPTION_LIST } option_kind;

typedef struct option_list { // every use of a repeatable option, in order; borrowed from argv
    const char *items[64];
    int n;
} option_list;

typedef struct option_row {
    const char *name; // "data": --data DIR, --data=DIR
    option_kind kind;
    void *to;          // bool *, const char **, int64_t *, option_list *
    const char *value; // how --help calls it; NULL for a flag
    const char *help;
} option_row;

// Fills the targets. Words that are no options go to words (at most max, *n_words counts them).
// ERR_INVALID names the option. *help is set by --help or -h, and parsing stops there.
int options_parse(const option_row *rows, int n_rows, int argc, char **argv, const char **words,
                  int max, int *n_words, bool *help, err *e);
void options_help(const option_row *rows, int n_rows, buf *out);

#endif
