// Option tables of the commands. Owns nothing: targets belong to the command, texts to argv.
#include "cli/options.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const option_row *row_find(const option_row *rows, int n, const char *name, size_t len) {
    for (int i = 0; i < n; i++)
        if (strlen(rows[i].name) == len && !memcmp(rows[i].name, name, len))
            return &rows[i];
    return NULL;
}

static int value_store(const option_row *row, const char *value, err *e) {
    if (row->kind == OPTION_TEXT) {
        *(const char **)row->to = value;
        return 0;
    }
    if (row->kind == OPTION_INT) {
        char *end;
        errno = 0;
        int64_t v = strtoll(value, &end, 10);
        if (errno || end == value || *end)
            return err_set(e, ERR_INVALID, row->name, "--%s takes a whole number, not '%s'",
                           row->name, value);
        *(int64_t *)row->to = v;
        return 0;
    }
    option_list *list = row->to;
    if (list->n == (int)(sizeof list->items / sizeof *list->items))
        return err_set(e, ERR_INVALID, row->name, "--%s is given more than %d times", row->name,
                       list->n);
    list->items[list->n++] = value;
    return 0;
}

int options_parse(const option_row *rows, int n_rows, int argc, char **argv, const char **words,
                  int max, int *n_words, bool *help, err *e) {
    *n_words = 0;
    *help = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            *help = true;
            return 0;
        }
        if (strncmp(word, "--", 2)) {
            if (*n_words == max)
                return err_set(e, ERR_INVALID, word, "'%s' is one word too many", word);
            words[(*n_words)++] = word;
            continue;
        }
        const char *equals = strchr(word, '=');
        size_t len = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
        const option_row *row = row_find(rows, n_rows, word + 2, len);
        if (!row)
            return err_set(e, ERR_INVALID, word, "unknown option %.*s", (int)len + 2, word);
        if (row->kind == OPTION_FLAG) {
            if (equals)
                return err_set(e, ERR_INVALID, row->name, "--%s takes no value", row->name);
            *(bool *)row->to = true;
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            return err_set(e, ERR_INVALID, row->name, "--%s needs a value: --%s %s", row->name,
                           row->name, row->value);
        if (value_store(row, value, e))
            return -1;
    }
    return 0;
}

void options_help(const option_row *rows, int n_rows, buf *out) {
    for (int i = 0; i < n_rows; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", rows[i].name, rows[i].value ? " " : "",
                 rows[i].value ? rows[i].value : "");
        buf_printf(out, "  %-28s %s\n", left, rows[i].help);
    }
}
