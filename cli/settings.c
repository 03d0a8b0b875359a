// Finding and reading the configuration for the commands. Owns the texts it makes until
// settings_release.
#include "cli/settings.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"

enum { ROOM = 64 }; // for the names of files in the data directory

static const char SYSTEM_FILE[] = "/etc/tiergate/tiergate.ini";

int settings_parse_words(const option_row *rows, int n_rows, int argc, char **argv,
                         const char *usage, const char **words, int max_words, int *n_words,
                         err *e) {
    bool help;
    if (options_parse(rows, n_rows, argc, argv, words, max_words, n_words, &help, e))
        return -1;
    if (!help)
        return 0;
    buf text = {0};
    buf_printf(&text, "%s\n\n", usage);
    options_help(rows, n_rows, &text);
    fputs(text.data, stdout);
    buf_release(&text);
    return 1;
}

int settings_parse(const option_row *rows, int n_rows, int argc, char **argv, const char *usage,
                   err *e) {
    int n_words;
    return settings_parse_words(rows, n_rows, argc, argv, usage, NULL, 0, &n_words, e);
}

static void made_add(settings *s, char *text) {
    if (s->sets.n == (int)(sizeof s->sets.items / sizeof *s->sets.items))
        fatal("too many --set");
    s->made[s->n_made++] = text;
    s->sets.items[s->sets.n++] = text;
}

void settings_set(settings *s, const char *key, const char *value) {
    buf text = {0};
    buf_printf(&text, "%s=%s", key, value);
    made_add(s, buf_take(&text));
}

int settings_set_model(settings *s, const char *text, int i, err *e) {
    static const char *const tiers[] = {"7b", "14b", "72b"};
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1])
        return err_set(e, ERR_INVALID, "model",
                       "--model takes NAME=FILE.gguf or NAME=DIRECTORY, not '%s'", text);
    if (i >= (int)(sizeof tiers / sizeof *tiers))
        return err_set(e, ERR_INVALID, "model", "at most three --model; configure more in a file");
    char key[128], path[4096];
    snprintf(key, sizeof key, "model.%.*s.path", (int)(equals - text), text);
    if (!realpath(equals + 1, path))
        return err_set(e, ERR_INVALID, "model", "no such model file or directory: %s", equals + 1);
    settings_set(s, key, path);
    snprintf(key, sizeof key, "model.%.*s.tier", (int)(equals - text), text);
    settings_set(s, key, tiers[i]);
    return 0;
}

int settings_default_data(char *out, size_t n, err *e) {
    const char *xdg = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (geteuid() == 0)
        snprintf(out, n, "/var/lib/tiergate");
    else if (xdg && *xdg)
        snprintf(out, n, "%s/tiergate", xdg);
    else if (home && *home)
        snprintf(out, n, "%s/.local/share/tiergate", home);
    else
        return err_set(e, ERR_INVALID, "data", "no home directory: give --data DIR");
    return 0;
}

static int load(settings *s, config *c, err *e) {
    return config_load(c, *s->path ? s->path : NULL, s->sets.items, s->sets.n, e);
}

int settings_load(settings *s, config *c, err *e) {
    const char *from_environment = getenv("TIERGATE_CONFIG");
    char dir[CONFIG_TEXT];
    if (s->file || s->data) {
        snprintf(s->path, sizeof s->path, "%s%s", s->file ? s->file : s->data,
                 s->file ? "" : "/run.ini");
        if (!file_exists(s->path))
            return err_set(e, ERR_INVALID, s->file ? "config" : "data", "%s does not exist%s",
                           s->path, s->file ? "" : "; was `tiergate up` started with this --data?");
        return load(s, c, e);
    }
    if (from_environment) {
        snprintf(s->path, sizeof s->path, "%s", from_environment);
        return load(s, c, e);
    }
    if (settings_default_data(dir, sizeof dir, e))
        return -1;
    snprintf(s->path, sizeof s->path, "%s/run.ini", dir);
    if (!file_exists(s->path))
        snprintf(s->path, sizeof s->path, "%s", file_exists(SYSTEM_FILE) ? SYSTEM_FILE : "");
    return load(s, c, e);
}

int settings_need_postgres(const config *c, err *e) {
    if (*c->postgres_url)
        return 0;
    return err_set(e, ERR_INVALID, "postgres.url",
                   "[postgres] url is not set: where is the database?");
}

int settings_connect(settings *s, config *c, pg **db, err *e) {
    return settings_load(s, c, e) || settings_need_postgres(c, e) ||
                   pg_connect(c->postgres_url, db, e)
               ? -1
               : 0;
}

static int too_long(const char *path, const config *c, err *e) {
    return err_set(e, ERR_INVALID, "data",
                   "--data takes a path of at most %zu characters that can be made; %s is none",
                   sizeof c->data_dir - ROOM, path);
}

// With no model configured, the small one that `make run` gets is served, so that `up` alone does
// something.
static int load_with_model(settings *s, config *c, err *e) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    buf model = {0};
    if (load(s, c, e))
        return -1;
    if (c->n_models || !((xdg && *xdg) || (home && *home)))
        return 0;
    buf_printf(&model, "smollm2-135m-instruct=%s%s/tiergate/SmolLM2-135M-Instruct.Q4_1.gguf",
               xdg && *xdg ? xdg : home, xdg && *xdg ? "" : "/.cache");
    int rc = 0;
    if (file_exists(strchr(model.data, '=') + 1))
        rc = settings_set_model(s, model.data, 0, e) || load(s, c, e) ? -1 : 0;
    buf_release(&model);
    return rc;
}

int settings_load_up(settings *s, config *c, err *e) {
    char dir[4096];
    if (s->data && strlen(s->data) >= sizeof c->data_dir)
        return too_long(s->data, c, e);
    if (s->file)
        snprintf(s->path, sizeof s->path, "%s", s->file);
    if (load_with_model(s, c, e))
        return -1;
    if (s->data)
        snprintf(c->data_dir, sizeof c->data_dir, "%s", s->data);
    else if (!*c->data_dir && settings_default_data(c->data_dir, sizeof c->data_dir, e))
        return -1;
    if (file_mkdirs(c->data_dir, 0700, e))
        return -1;
    if (!realpath(c->data_dir, dir) || strlen(dir) + ROOM > sizeof c->data_dir)
        return too_long(c->data_dir, c, e); // absolute, because children run elsewhere
    memcpy(c->data_dir, dir, strlen(dir) + 1);
    return 0;
}

void settings_release(settings *s) {
    for (int i = 0; i < s->n_made; i++)
        free(s->made[i]);
    s->n_made = 0;
}
