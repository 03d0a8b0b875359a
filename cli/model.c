// `tiergate model check|add|ls|verify|rm`: is this a model that a worker would load, and the models
// that were added. check needs no installation and reads no weights.
#include <stdio.h>
#include <string.h>
#include "cli/commands.h"
#include "cli/model_registry.h"
#include "cli/settings.h"
#include "model/model.h"

static const char usage[] =
    "tiergate model check FILE.gguf|DIRECTORY   a summary and exit status 0, or one line that says "
    "what is wrong\n"
    "tiergate model add FILE.gguf|DIRECTORY     check it, hash its files, and record both\n"
    "tiergate model ls                          the models that were added\n"
    "tiergate model verify [NAME]               are the files still those that were added?\n"
    "tiergate model rm NAME                     forget a model; its files stay";

static int check(const char *path, err *e) {
    buf summary = {0};
    int rc = model_check(path, &summary, e);
    if (!rc)
        fputs(summary.data, stdout);
    else
        e->code = ERR_FORMAT; // exit status 1 whatever is wrong with the file
    buf_release(&summary);
    return rc;
}

static int run(pg *db, const char *const *words, int n, registry_options *o, err *e) {
    if (!strcmp(words[0], "add"))
        return registry_add(db, words[1], o, e);
    if (!strcmp(words[0], "ls"))
        return registry_list(db, o, e);
    o->name = n > 1 ? words[1] : NULL;
    return !strcmp(words[0], "verify") ? registry_verify(db, o, e) : registry_remove(db, o, e);
}

// How many words may follow the action; -1: there is no such action.
static int most_words(const char *action, bool *needed) {
    static const struct {
        const char *name;
        int most;
        bool needed;
    } actions[] = {{"check", 1, true},
                   {"add", 1, true},
                   {"ls", 0, false},
                   {"verify", 1, false},
                   {"rm", 1, true}};
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (!strcmp(actions[i].name, action)) {
            *needed = actions[i].needed;
            return actions[i].most;
        }
    return -1;
}

static int check_words(const char *const *words, int n, err *e) {
    bool needed = false;
    int most = n ? most_words(words[0], &needed) : -1;
    if (most < 0)
        return err_set(e, ERR_INVALID, "action", "say check, add, ls, verify or rm");
    if (n - 1 > most)
        return err_set(e, ERR_INVALID, "action", "'%s' is one word too many", words[1 + most]);
    if (needed && n < 2)
        return err_set(e, ERR_INVALID, "action", "model %s needs %s", words[0],
                       strcmp(words[0], "rm") ? "a GGUF file or a directory" : "a name");
    return 0;
}

int command_model(int argc, char **argv, err *e) {
    settings s = {0};
    registry_options o = {.tier = "", .template = ""};
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"name", OPTION_TEXT, &o.name, "NAME", "add: what it is called (default: from the path)"},
        {"tier", OPTION_TEXT, &o.tier, "TIER", "add: the tier that will serve it"},
        {"template", OPTION_TEXT, &o.template, "NAME", "add: chat template (default: its own)"},
        {"unassign", OPTION_FLAG, &o.unassign, NULL, "rm: take its assignments away too"},
        {"json", OPTION_FLAG, &o.json, NULL, "print JSON (add, ls, verify, rm)"},
    };
    enum { N = sizeof rows / sizeof *rows };
    const char *words[3];
    int n_words;
    config c;
    pg *db = NULL;
    int rc = settings_parse_words(rows, N, argc, argv, usage, words, 3, &n_words, e);
    if (rc)
        return rc > 0 ? 0 : -1;
    if (check_words(words, n_words, e))
        return -1;
    if (!strcmp(words[0], "check"))
        return check(words[1], e);
    if (settings_connect(&s, &c, &db, e))
        return -1;
    rc = run(db, words, n_words, &o, e);
    pg_close(db);
    return rc;
}
