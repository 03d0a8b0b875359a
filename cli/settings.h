// Where a command's configuration comes from: --config FILE, or what `tiergate up` left in --data
// DIR/run.ini, then --set.
#ifndef CLI_SETTINGS_H
#define CLI_SETTINGS_H
#include "base/config.h"
#include "base/err.h"
#include "base/pg.h"
#include "cli/options.h"

typedef struct settings {
    const char *file, *data;
    option_list sets;
    char *made[64]; // texts of settings_set; freed by settings_release
    int n_made;
    char path[CONFIG_TEXT + 16]; // the file that was read, "" for none
} settings;

#define SETTINGS_ROWS(s)                                                                           \
    {"config", OPTION_TEXT, &(s)->file, "FILE",                                                    \
     "configuration (see deploy/tiergate.example.ini)"},                                           \
        {"data", OPTION_TEXT, &(s)->data, "DIR",                                                   \
         "data directory (default: /var/lib/tiergate, or ~/.local/share/tiergate)"},               \
    {                                                                                              \
        "set", OPTION_LIST, &(s)->sets, "SECTION.KEY=VALUE", "override one value (repeatable)"     \
    }

// Parses a command without words. 0: go on; 1: --help was shown; -1: e.
int settings_parse(const option_row *rows, int n_rows, int argc, char **argv, const char *usage,
                   err *e);
// The same with at most max_words words (borrowed from argv).
int settings_parse_words(const option_row *rows, int n_rows, int argc, char **argv,
                         const char *usage, const char **words, int max_words, int *n_words,
                         err *e);
// For tools that only need the ledger: loads the configuration and connects.
int settings_connect(settings *s, config *c, pg **db, err *e);
void settings_set(settings *s, const char *key, const char *value);
// "NAME=FILE.gguf" or "NAME=DIRECTORY": the i-th model of the command line; its tier is 7b, 14b,
// 72b in this order unless --set says otherwise.
int settings_set_model(settings *s, const char *text, int i, err *e);
int settings_load(settings *s, config *c,
                  err *e); // for tools and roles: finds a running installation
int settings_load_up(settings *s, config *c, err *e); // for up: never reads run.ini
int settings_need_postgres(const config *c, err *e);  // ERR_INVALID when no address is set
void settings_release(settings *s);
int settings_default_data(char *out, size_t n, err *e);

#endif
