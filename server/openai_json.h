// A request's body as JSON, with everything refused that would be read differently by different
// parsers: depth over the limit, bytes that are not UTF-8, lone surrogates, NUL, duplicate names.
#ifndef SERVER_OPENAI_JSON_H
#define SERVER_OPENAI_JSON_H
#include <stddef.h>
#include <jansson.h>
#include "base/err.h"

#define OPENAI_JSON_DEPTH 1024 // the most that max_depth may say

// p[0..n) must hold one JSON object. ERR_INVALID tells what is wrong and at which byte; param is
// the path of the value (messages[2].content) when it is known. The caller frees *out with
// json_decref.
int openai_json_parse(const char *p, size_t n, int max_depth, json_t **out, err *e);

// The path of a member or an element, for err.param: "messages" + 2 -> "messages[2]",
// "messages[2]" + "content" -> "messages[2].content". base may be "".
typedef struct json_path {
    char text[64];
} json_path;
json_path json_path_member(const char *base, const char *name);
json_path json_path_element(const char *base, size_t index);

#endif
