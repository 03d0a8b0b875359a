// Reads the JSON of model directories with jansson. A scan of the raw bytes limits the depth first,
// because jansson's own limit is 2,048. Owns nothing; any thread.
#include "model/json_file.h"
#include "base/buf.h"
#include "base/file.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// The depth that the brackets outside of strings reach.
static int depth_of(const char *p, size_t n) {
    int depth = 0, most = 0;
    bool text = false;
    for (size_t i = 0; i < n; i++) {
        if (text && p[i] == '\\')
            i++;
        else if (p[i] == '"')
            text = !text;
        else if (!text && (p[i] == '{' || p[i] == '['))
            most = ++depth > most ? depth : most;
        else if (!text && (p[i] == '}' || p[i] == ']'))
            depth--;
    }
    return most;
}

// Messages quote the file: on one line, printable.
static void make_printable(char *s) {
    for (; *s; s++)
        if (*s < ' ' || *s > '~')
            *s = '?';
}

int json_file_parse(const char *name, const char *p, size_t n, json_numbers numbers, json_t **out,
                    err *e) {
    json_error_t why;
    if (depth_of(p, n) > JSON_FILE_DEPTH)
        return err_set(e, ERR_FORMAT, NULL, "%s: nested deeper than %d levels", name,
                       JSON_FILE_DEPTH);
    json_t *o = json_loadb(
        p, n, JSON_REJECT_DUPLICATES | (numbers == JSON_NUMBERS_REAL ? JSON_DECODE_INT_AS_REAL : 0),
        &why);
    if (!o) {
        make_printable(why.text);
        return err_set(e, ERR_FORMAT, NULL, "%s: not JSON at byte %d: %.100s", name, why.position,
                       why.text);
    }
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(e, ERR_FORMAT, NULL, "%s: not a JSON object", name);
    }
    *out = o;
    return 0;
}

int json_file_read(const char *dir, const char *name, size_t limit, bool required,
                   json_numbers numbers, json_t **out, err *e) {
    buf path = {0}, text = {0};
    buf_printf(&path, "%s/%s", dir, name);
    *out = NULL;
    struct stat s;
    int rc = 0;
    if (stat(path.data, &s))
        rc = required ? err_set(e, ERR_IO, NULL, "%s: %s", name, strerror(errno)) : 0;
    else if (!S_ISREG(s.st_mode)) // a FIFO must not hold us
        rc = err_set(e, ERR_IO, NULL, "%s: not a regular file", name);
    else if (file_read(path.data, limit, &text, e) ||
             json_file_parse(name, text.len ? text.data : "", text.len, numbers, out, e))
        rc = -1;
    buf_release(&text);
    buf_release(&path);
    return rc;
}

const json_t *json_field(const json_fields *f, const char *key) {
    const json_t *v = json_object_get(f->object, key);
    return json_is_null(v) ? NULL : v;
}

int json_field_missing(const json_fields *f, const char *key, err *e) {
    return err_set(e, ERR_FORMAT, NULL, "%s: %s%s is missing", f->file, f->path, key);
}

int json_field_unsupported(const json_fields *f, const char *key, const char *why, err *e) {
    char shown[104] = "missing";
    char *text = json_dumps(json_object_get(f->object, key), JSON_COMPACT | JSON_ENCODE_ANY);
    if (text) {
        snprintf(shown, sizeof shown, "%.100s%s", text, strlen(text) > 100 ? "..." : "");
        make_printable(shown);
    }
    free(text);
    return err_set(e, ERR_UNSUPPORTED, NULL, "%s: %s%s is %s; %s", f->file, f->path, key, shown,
                   why);
}

int json_field_must_be(const json_fields *f, const char *key, const json_t *harmless,
                       const char *why, err *e) {
    const json_t *v = json_field(f, key);
    bool fine = !v || json_equal(v, harmless) ||
                (json_is_number(v) && json_is_number(harmless) &&
                 json_number_value(v) == json_number_value(harmless));
    return fine ? 0 : json_field_unsupported(f, key, why, e);
}

static int wrong(const json_fields *f, const char *key, const char *wanted, err *e) {
    return err_set(e, ERR_FORMAT, NULL, "%s: %s%s is no %s", f->file, f->path, key, wanted);
}

int json_field_int(const json_fields *f, const char *key, int64_t least, int64_t most, int64_t *out,
                   err *e) {
    const json_t *v = json_field(f, key);
    if (!v)
        return 0;
    if (!json_is_integer(v))
        return wrong(f, key, "whole number", e);
    int64_t n = json_integer_value(v);
    if (n < least || n > most)
        return err_set(e, ERR_FORMAT, NULL, "%s: %s%s is %lld; %lld to %lld are possible", f->file,
                       f->path, key, (long long)n, (long long)least, (long long)most);
    *out = n;
    return 0;
}

int json_field_number(const json_fields *f, const char *key, double least, double most, double *out,
                      err *e) {
    const json_t *v = json_field(f, key);
    if (!v)
        return 0;
    if (!json_is_number(v))
        return wrong(f, key, "number", e);
    double x = json_number_value(v);
    if (!(x >= least && x <= most))
        return err_set(e, ERR_FORMAT, NULL, "%s: %s%s is %g; %g to %g are possible", f->file,
                       f->path, key, x, least, most);
    *out = x;
    return 0;
}

int json_field_bool(const json_fields *f, const char *key, bool *out, err *e) {
    const json_t *v = json_field(f, key);
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return wrong(f, key, "bool", e);
    *out = json_is_true(v);
    return 0;
}

int json_field_text(const json_fields *f, const char *key, const char **out, err *e) {
    const json_t *v = json_field(f, key);
    if (!v)
        return 0;
    if (!json_is_string(v))
        return wrong(f, key, "text", e);
    *out = json_string_value(v);
    return 0;
}
