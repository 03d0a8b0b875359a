// Inside base only: the table of keys and what is done with one row.
#ifndef BASE_CONFIG_INTERNAL_H
#define BASE_CONFIG_INTERNAL_H
#include "base/config.h"

typedef enum config_type {
    CONFIG_STRING,   // text that fits its field
    CONFIG_NAME,     // letters, digits and . _ - : / only; it becomes part of keys and labels
    CONFIG_CHOICE,   // one of `choices`
    CONFIG_NUMBER,   // whole number in [least, most]
    CONFIG_SIZE,     // the same, in bytes; KiB, MiB, GiB may follow
    CONFIG_SWITCH,   // true or false
    CONFIG_LISTEN,   // config_listen
    CONFIG_REDIS,    // address of Redis, or nothing
    CONFIG_POSTGRES, // URL or key=value string of libpq, or nothing
} config_type;

typedef struct config_row {
    const char *section; // "model": the field lies in a config_model
    const char *name;
    config_type type;
    size_t offset, size; // of the field in config or config_model
    bool reload;         // may change at run time
    int64_t least, most;
    const char *choices; // "a|b|c"
    const char *value;   // the default, as text
    const char *help;    // one sentence
} config_row;

extern const config_row config_rows[];
extern const int config_n_rows;

const config_row *config_find_row(const char *section, const char *name); // NULL: none
bool config_has_section(const char *section);
// Parses text into the row's field of `holder` (a config, or a config_model for section "model");
// -1 with e->message = what is wanted, without the key's name.
int config_set_value(const config_row *row, void *holder, const char *text, err *e);
void config_put_number(const config_row *row, int64_t n, buf *out); // as config_put_value writes it
void config_put_value(const config_row *row, const void *holder,
                      buf *out); // the twin: text that parses to the same

#endif
