// Members of a JSON object, read by a table: one row says the name, the type, the range and where
// the value goes. Every member is honoured or refused by its name; null is the same as absent.
#ifndef SERVER_OPENAI_FIELD_H
#define SERVER_OPENAI_FIELD_H
#include <stddef.h>
#include <jansson.h>
#include "base/arena.h"
#include "base/err.h"

typedef struct openai_limits openai_limits; // server/openai_request.h

typedef struct field_text { // borrowed from the JSON value, NUL-terminated; s NULL: absent
    const char *s;
    size_t n;
} field_text;

typedef enum field_kind {
    FIELD_BOOL,    // bool
    FIELD_INT,     // int64_t, least <= v <= most
    FIELD_REAL,    // double, least <= v <= most
    FIELD_TEXT,    // field_text
    FIELD_LABEL,   // a string that asks for nothing (who the end user is); kept nowhere
    FIELD_OWN,     // read() decides
    FIELD_REFUSED, // known to OpenAI's API, not built here
} field_kind;

typedef struct field_scope { // what every reader of one request may use
    arena *arena;
    const openai_limits *limits;
} field_scope;

// path names v for errors; record is what `at` counts from.
typedef int field_read(void *record, const json_t *v, const char *path, const field_scope *scope,
                       err *e);

typedef struct field {
    const char *name; // NULL ends a table
    field_kind kind;
    size_t at; // offset in the record
    double least, most;
    field_read *read;
} field;

// Reads every member of object by the first row that has its name. Unknown names and FIELD_REFUSED
// are ERR_UNSUPPORTED, wrong types and ranges ERR_INVALID; param is the path of the member.
int field_read_object(const json_t *object, const char *path, const field *const *tables,
                      int n_tables, const field_scope *scope, void *record, err *e);

int field_wrong_type(const char *path, const char *wanted, const json_t *v, err *e);
int field_missing(const char *path, err *e);
// Readers for members that are accepted only when they ask for nothing.
field_read field_only_false, field_only_empty_array, field_only_none;

#endif
