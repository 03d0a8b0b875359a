// Table-driven reading of JSON objects. Writes plain values into the caller's record; texts stay in
// the JSON tree. Pure, any thread. Does not know what the members mean.
#include "server/openai_field.h"
#include "server/openai_json.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static const char *type_name(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}

int field_wrong_type(const char *path, const char *wanted, const json_t *v, err *e) {
    return err_set(e, ERR_INVALID, path, "'%s' must be %s, not %s.", path, wanted, type_name(v));
}

int field_missing(const char *path, err *e) {
    return err_set(e, ERR_INVALID, path, "'%s' is required.", path);
}

static int read_int(const field *f, const json_t *v, const char *path, int64_t *out, err *e) {
    if (!json_is_integer(v))
        return field_wrong_type(path, "an integer", v, e);
    json_int_t i = json_integer_value(v);
    if ((double)i < f->least || (double)i > f->most)
        return err_set(e, ERR_INVALID, path, "'%s' must be between %.0f and %.0f, not %lld.", path,
                       f->least, f->most, (long long)i);
    *out = i;
    return 0;
}

static int read_real(const field *f, const json_t *v, const char *path, double *out, err *e) {
    if (!json_is_number(v))
        return field_wrong_type(path, "a number", v, e);
    double d = json_number_value(v);
    if (!(d >= f->least && d <= f->most))
        return err_set(e, ERR_INVALID, path, "'%s' must be between %g and %g, not %g.", path,
                       f->least, f->most, d);
    *out = d;
    return 0;
}

static int read_member(const field *f, const json_t *v, const char *path, const field_scope *scope,
                       void *record, err *e) {
    void *to = (char *)record + f->at;
    switch (f->kind) {
    case FIELD_BOOL:
        if (!json_is_boolean(v))
            return field_wrong_type(path, "a boolean", v, e);
        *(bool *)to = json_is_true(v);
        return 0;
    case FIELD_INT:
        return read_int(f, v, path, to, e);
    case FIELD_REAL:
        return read_real(f, v, path, to, e);
    case FIELD_TEXT:
    case FIELD_LABEL:
        if (!json_is_string(v))
            return field_wrong_type(path, "a string", v, e);
        if (f->kind == FIELD_TEXT)
            *(field_text *)to = (field_text){json_string_value(v), json_string_length(v)};
        return 0;
    case FIELD_OWN:
        return f->read(record, v, path, scope, e);
    case FIELD_REFUSED:
        break;
    }
    return err_set(e, ERR_UNSUPPORTED, path, "'%s' is not supported by this gateway.", path);
}

static const field *find_field(const field *const *tables, int n_tables, const char *name) {
    for (int i = 0; i < n_tables; i++)
        for (const field *f = tables[i]; f->name; f++)
            if (strcmp(f->name, name) == 0)
                return f;
    return NULL;
}

int field_read_object(const json_t *object, const char *path, const field *const *tables,
                      int n_tables, const field_scope *scope, void *record, err *e) {
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)object, name, v) {
        json_path at = json_path_member(path, name);
        const field *f = find_field(tables, n_tables, name);
        if (!f)
            return err_set(e, ERR_UNSUPPORTED, at.text, "Unrecognized parameter: '%s'.", at.text);
        if (!json_is_null(v) && read_member(f, v, at.text, scope, record, e))
            return -1;
    }
    return 0;
}

int field_only_false(void *record, const json_t *v, const char *path, const field_scope *scope,
                     err *e) {
    (void)record, (void)scope;
    if (!json_is_boolean(v))
        return field_wrong_type(path, "a boolean", v, e);
    if (json_is_true(v))
        return err_set(e, ERR_UNSUPPORTED, path, "'%s' is supported as false only.", path);
    return 0;
}

int field_only_empty_array(void *record, const json_t *v, const char *path,
                           const field_scope *scope, err *e) {
    (void)record, (void)scope;
    if (!json_is_array(v))
        return field_wrong_type(path, "an array", v, e);
    if (json_array_size(v))
        return err_set(e, ERR_UNSUPPORTED, path, "'%s' is not supported by this gateway.", path);
    return 0;
}

int field_only_none(void *record, const json_t *v, const char *path, const field_scope *scope,
                    err *e) {
    (void)record, (void)scope;
    if (!json_is_string(v) || strcmp(json_string_value(v), "none") != 0)
        return err_set(e, ERR_UNSUPPORTED, path, "'%s' is supported as \"none\" only.", path);
    return 0;
}
