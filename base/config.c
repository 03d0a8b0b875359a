// Loading the configuration: defaults, then the file (inih), then the environment, then --set; the
// last one wins. Owns nothing beyond a call. Every complaint names the key and where its value
// stands. Does not open what the values name.
#include "base/config.h"
#include "base/config_internal.h"
#include "base/file.h"
#include <ctype.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_LIMIT (1 << 20)
#define SECTION_TEXT 80

typedef struct reading {
    config *c;
    const char *path;
    const char *rest;           // of the file
    int line;                   // that was handed to inih last, from 1
    const char *cut;            // the rest of a line that does not fit inih's buffer; NULL: none
    bool is_rest;               // what was handed over last is such a rest
    char section[SECTION_TEXT]; // of the lines now, as written ("model NAME")
    char key[64];               // waiting for the rest of its value
    buf value;
    int value_line; // 0: no value waits
    buf seen;       // of all keys so far, for those given twice
    buf lines;      // int per call of next_line: the line it came from
    err *e;
    bool has_failed;
} reading;

// ---- one value, from anywhere

// Completes e: "PLACE: SECTION.KEY: what is wrong", param "SECTION.KEY".
static int blame(err *e, const char *place, const char *key) {
    err why = e ? *e : (err){0};
    return err_set(e, ERR_INVALID, key, "%s: %s: %s", place, key, why.message);
}

static int complain(err *e, const char *place, const char *key, const char *what) {
    return err_set(e, ERR_INVALID, key, "%s: %s: %s", place, key, what);
}

static bool is_model_name(const char *name) {
    return *name && strlen(name) < sizeof(((config_model *)0)->name) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/") ==
               strlen(name);
}

static config_model *find_model(config *c, const char *name) {
    for (int i = 0; i < c->n_models; i++)
        if (strcmp(c->models[i].name, name) == 0)
            return &c->models[i];
    return NULL;
}

// Finds the model or adds it with its defaults; NULL: not possible (e says why).
static config_model *need_model(config *c, const char *name, err *e) {
    config_model *m = find_model(c, name);
    if (m)
        return m;
    if (!is_model_name(name)) {
        err_set(e, ERR_INVALID, NULL, "a model's name has 1 to 63 letters, digits and . _ - : /");
        return NULL;
    }
    if (c->n_models == CONFIG_MODELS) {
        err_set(e, ERR_INVALID, NULL, "more than %d models", CONFIG_MODELS);
        return NULL;
    }
    m = &c->models[c->n_models++];
    *m = (config_model){0};
    memcpy(m->name, name, strlen(name));
    return m; // a model's defaults are zero and empty
}

// section: "gateway", or "model" with the model's name.
static int set_key(config *c, const char *section, const char *model, const char *key,
                   const char *text, const char *place, err *e) {
    char full[160];
    snprintf(full, sizeof full, "%s%s%s%s%s", section, model ? "." : "", model ? model : "",
             *key ? "." : "", key);
    bool is_model = strcmp(section, "model") == 0;
    if (!config_has_section(section) || is_model != (model != NULL))
        return complain(e, place, full, "there is no such section");
    const config_row *row = config_find_row(section, key);
    if (!row)
        return complain(e, place, full, "there is no such key");
    void *holder = is_model ? (void *)need_model(c, model, e) : c;
    if (!holder || config_set_value(row, holder, text, e))
        return blame(e, place, full);
    return 0;
}

static void set_defaults(config *c) {
    *c = (config){0};
    for (int i = 0; i < config_n_rows; i++) {
        err e = {0};
        if (strcmp(config_rows[i].section, "model") != 0 &&
            config_set_value(&config_rows[i], c, config_rows[i].value, &e))
            fatal("the default of %s.%s: %s", config_rows[i].section, config_rows[i].name,
                  e.message);
    }
}

// ---- the file

static int fail(reading *r) {
    r->has_failed = true;
    return 0; // what inih's handler returns for an error
}

static void place_of(const reading *r, int line, char out[CONFIG_TEXT + 64]) {
    snprintf(out, CONFIG_TEXT + 64, "%.*s:%d", CONFIG_TEXT, r->path, line);
}

static int bad_syntax(reading *r, int line) {
    char place[CONFIG_TEXT + 64];
    place_of(r, line, place);
    err_set(r->e, ERR_INVALID, NULL, "%s: neither [section], key = value nor a comment", place);
    return fail(r);
}

// Splits "model NAME" in place; *model NULL: no model's section. Returns false when it is
// malformed.
static bool split_section(char *section, char **model) {
    *model = NULL;
    if (strncmp(section, "model", 5) != 0 || (section[5] && !isspace((unsigned char)section[5])))
        return true;
    char *name = section + 5;
    while (isspace((unsigned char)*name))
        *name++ = '\0';
    *model = name;
    return *name != '\0';
}

static bool mark_seen(reading *r, const char *key) {
    char entry[SECTION_TEXT + 80];
    snprintf(entry, sizeof entry, "\n%s\001%s\n", r->section, key);
    if (r->seen.len && strstr(r->seen.data, entry))
        return false;
    buf_puts(&r->seen, entry);
    return true;
}

// Takes over the value that is now complete.
static int finish_value(reading *r) {
    char place[CONFIG_TEXT + 64], section[SECTION_TEXT], *model;
    if (!r->value_line || r->has_failed)
        return 1;
    place_of(r, r->value_line, place);
    r->value_line = 0;
    memcpy(section, r->section, sizeof section);
    split_section(section, &model);
    if (!mark_seen(r, r->key)) {
        char full[160];
        snprintf(full, sizeof full, "%s.%s", r->section, r->key);
        complain(r->e, place, full, "given twice");
        return fail(r);
    }
    if (set_key(r->c, section, model, r->key, r->value.data, place, r->e))
        return fail(r);
    return 1;
}

static int on_pair(void *ctx, const char *section, const char *key, const char *value) {
    (void)section; // inih cuts long ones; ours comes from the reader
    reading *r = ctx;
    if (r->has_failed)
        return 0;
    if (r->is_rest) {
        buf_puts(&r->value, value);
        return 1;
    }
    if (!finish_value(r))
        return 0;
    char place[CONFIG_TEXT + 64];
    place_of(r, r->line, place);
    if (!r->section[0]) {
        complain(r->e, place, key, "stands before the first [section]");
        return fail(r);
    }
    snprintf(r->key, sizeof r->key, "%s", key);
    buf_clear(&r->value);
    buf_puts(&r->value, value);
    r->value_line = r->line;
    return 1;
}

// A line "[name]": checked here, because inih says nothing of a section without keys and cuts long
// names.
static void enter_section(reading *r, const char *text) {
    char place[CONFIG_TEXT + 64], name[SECTION_TEXT], *model;
    size_t n = strcspn(text, "]\n");
    finish_value(r);
    if (r->has_failed)
        return;
    if (text[n] != ']') {
        bad_syntax(r, r->line);
        return;
    }
    place_of(r, r->line, place);
    snprintf(name, sizeof name, "%.*s", (int)n, text);
    snprintf(r->section, sizeof r->section, "%s", name);
    err why = {0};
    if (n >= sizeof name)
        err_set(&why, ERR_INVALID, NULL, "a section's name this long is none of ours");
    else if (!split_section(name, &model))
        err_set(&why, ERR_INVALID, NULL, "want [model NAME]");
    else if (!config_has_section(name))
        err_set(&why, ERR_INVALID, NULL, "there is no such section");
    else if (model)
        need_model(r->c, model, &why);
    if (!why.code)
        return;
    complain(r->e, place, r->section, why.message);
    fail(r);
}

// Hands over at most size - 1 bytes of `line` and remembers the rest. Breaks between two visible
// characters, because inih trims blanks at the ends of what it gets and takes a leading ; or # for
// a comment.
static void hand_over(reading *r, const char *line, size_t n, char *out, size_t size) {
    size_t at = 0;
    if (r->is_rest)
        out[at++] = ' '; // so that inih takes it for a continuation
    size_t take = n < size - 1 - at ? n : size - 1 - at;
    while (take < n && take > 1 &&
           (strchr(" \t;#", line[take]) || isspace((unsigned char)line[take - 1])))
        take--;
    memcpy(out + at, line, take);
    out[at + take] = '\0';
    bool is_comment = !r->is_rest && strchr("#;", line[strspn(line, " \t")]);
    r->cut = take < n && line[take] != '\n' && !is_comment ? line + take : NULL;
}

// inih's reader: one line a call, a long one in pieces.
static char *next_line(char *out, int size, void *ctx) {
    reading *r = ctx;
    r->is_rest = r->cut != NULL;
    const char *line = r->is_rest ? r->cut : r->rest;
    if (!*line || r->has_failed)
        return NULL;
    size_t n = strcspn(line, "\n");
    r->line += r->is_rest ? 0 : 1;
    buf_put(&r->lines, &r->line, sizeof r->line);
    if (!r->is_rest) {
        r->rest = line + n + (line[n] == '\n');
        const char *start = line + strspn(line, " \t");
        if (*start == '[')
            enter_section(r, start + 1);
    }
    hand_over(r, line, n, out, (size_t)size);
    return out;
}

static int parse_file(reading *r, const char *text) {
    r->rest = strncmp(text, "\xef\xbb\xbf", 3) == 0 ? text + 3 : text;
    int bad_call = ini_parse_stream(next_line, r, on_pair, r);
    if (!r->has_failed && bad_call > 0) {
        int line;
        memcpy(&line, r->lines.data + (size_t)(bad_call - 1) * sizeof line, sizeof line);
        bad_syntax(r, line);
    }
    finish_value(r);
    return r->has_failed ? -1 : 0;
}

static int read_file(config *c, const char *path, err *e) {
    buf text = {0};
    reading r = {.c = c, .path = path, .e = e};
    int rc = file_read(path, FILE_LIMIT, &text, e);
    if (!rc && strlen(text.data) != text.len)
        rc = err_set(e, ERR_INVALID, NULL, "%s: there is a NUL in it", path);
    if (!rc)
        rc = parse_file(&r, text.data);
    buf_release(&r.value);
    buf_release(&r.seen);
    buf_release(&r.lines);
    buf_release(&text);
    return rc;
}

// ---- the environment and --set

static int read_environment(config *c, err *e) {
    for (int i = 0; i < config_n_rows; i++) {
        const config_row *row = &config_rows[i];
        char name[128];
        if (strcmp(row->section, "model") == 0)
            continue; // a model's name is no part of a variable's name
        snprintf(name, sizeof name, "TIERGATE_%s_%s", row->section, row->name);
        for (char *p = name; *p; p++)
            *p = (char)toupper((unsigned char)*p);
        const char *text = getenv(name);
        if (text && set_key(c, row->section, NULL, row->name, text, name, e))
            return -1;
    }
    return 0;
}

// "section.key=value" or "model.NAME.key=value"; NAME may hold dots.
static int read_set(config *c, const char *set, err *e) {
    char key[256], place[300];
    size_t n = strcspn(set, "=");
    snprintf(place, sizeof place, "--set %.200s", set);
    char *dot = NULL;
    if (set[n] == '=' && n < sizeof key) {
        memcpy(key, set, n);
        key[n] = '\0';
        dot = strchr(key, '.');
    }
    if (!dot)
        return err_set(e, ERR_INVALID, NULL, "%s: want section.key=value", place);
    char *last = strrchr(key, '.'), *model = last > dot ? dot + 1 : NULL;
    *dot = '\0';
    *last = '\0';
    return set_key(c, key, model, last + 1, set + n + 1, "--set", e);
}

// ---- what single values cannot say

static int check_models(const config *c, const char *place, err *e) {
    static const char *const needed[] = {"path", "tier"};
    for (int i = 0; i < c->n_models; i++)
        for (int k = 0; k < 2; k++) {
            char key[160];
            const char *text = k == 0 ? c->models[i].path : c->models[i].tier;
            snprintf(key, sizeof key, "model.%s.%s", c->models[i].name, needed[k]);
            if (!*text)
                return complain(e, place, key, "is missing");
        }
    return 0;
}

static int check(const config *c, const char *path, err *e) {
    const char *place = path ? path : "configuration";
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (c->tls_cert[0] && !c->tls_key[0])
        return complain(e, place, "gateway.tls_key", "is missing, gateway.tls_cert is given");
    if (c->tls_key[0] && !c->tls_cert[0])
        return complain(e, place, "gateway.tls_cert", "is missing, gateway.tls_key is given");
    if (c->reactors > n_cores)
        return complain(e, place, "gateway.reactors", "more than this machine has cores");
    if (c->queue_per_tenant > c->queue_per_tier)
        return complain(e, place, "gateway.queue_per_tenant", "more than gateway.queue_per_tier");
    if (c->step_tokens < c->slots)
        return complain(e, place, "worker.step_tokens",
                        "less than worker.slots: a step decodes one token per sequence");
    return check_models(c, place, e);
}

int config_load(config *c, const char *path, const char *const *sets, int n_sets, err *e) {
    set_defaults(c);
    if (path && read_file(c, path, e))
        return -1;
    if (read_environment(c, e))
        return -1;
    for (int i = 0; i < n_sets; i++)
        if (read_set(c, sets[i], e))
            return -1;
    return check(c, path, e);
}

size_t config_adapters_dir(const config *c, char *out, size_t n) {
    int length = c->adapters_dir[0] ? snprintf(out, n, "%s", c->adapters_dir)
                                    : snprintf(out, n, "%s/adapters", c->data_dir);
    return (size_t)length < n ? (size_t)length : n - 1;
}

const config_model *config_find_model(const config *c, const char *name) {
    return find_model((config *)(uintptr_t)c, name);
}
