// The JSON files of a Hugging Face directory, and the header of a safetensors file: objects read
// with limits, and typed questions whose errors name file and field. Stateless; any thread.
#ifndef MODEL_JSON_FILE_H
#define MODEL_JSON_FILE_H
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define JSON_FILE_DEPTH 64

typedef enum json_numbers {
    JSON_NUMBERS_EXACT, // a whole number over 64 bits is ERR_FORMAT
    JSON_NUMBERS_REAL,  // all are reals: transformers writes 10^30 for "no limit"
} json_numbers;

// One JSON object; name is what messages call it. ERR_FORMAT: depth over JSON_FILE_DEPTH, a name
// twice in an object, NUL, bytes that are not UTF-8, anything behind the object. The caller frees
// *out with json_decref.
int json_file_parse(const char *name, const char *p, size_t n, json_numbers numbers, json_t **out,
                    err *e);
// DIR/NAME, at most limit bytes. *out is NULL when there is no such file and it is not required.
int json_file_read(const char *dir, const char *name, size_t limit, bool required,
                   json_numbers numbers, json_t **out, err *e);

typedef struct json_fields { // an object of a file, for messages: "config.json:
                             // rope_scaling.factor"
    const char *file;
    const char *path; // of the object within the file, "" or with a dot at its end
    const json_t *object;
} json_fields;

// null counts as absent. Each leaves *out alone when the field is absent, and is ERR_FORMAT when it
// has another type or lies outside the range.
int json_field_int(const json_fields *f, const char *key, int64_t least, int64_t most, int64_t *out,
                   err *e);
int json_field_number(const json_fields *f, const char *key, double least, double most, double *out,
                      err *e);
int json_field_bool(const json_fields *f, const char *key, bool *out, err *e);
int json_field_text(const json_fields *f, const char *key, const char **out, err *e); // borrowed
const json_t *json_field(const json_fields *f, const char *key); // NULL: absent or null
// ERR_FORMAT: "FILE: PATHKEY is missing".
int json_field_missing(const json_fields *f, const char *key, err *e);
// ERR_UNSUPPORTED: "FILE: PATHKEY is VALUE; WHY", the value shortened and on one line.
int json_field_unsupported(const json_fields *f, const char *key, const char *why, err *e);
// ERR_UNSUPPORTED unless the field is absent or one of its harmless values.
int json_field_must_be(const json_fields *f, const char *key, const json_t *harmless,
                       const char *why, err *e);

#endif
