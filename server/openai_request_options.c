// Readers of the smaller members that are no plain values: stop, logit_bias, seed, stream_options,
// and those which are accepted only as far as they ask for what this gateway does anyway.
#include "server/openai_request_parts.h"
#include <stdlib.h>
#include <string.h>

#define STOP_BYTES 1024
#define METADATA_PAIRS 16

static int read_one_stop(openai_request *q, const json_t *v, const char *path, err *e) {
    if (!json_is_string(v))
        return field_wrong_type(path, "a string", v, e);
    size_t n = json_string_length(v);
    if (n == 0 || n > STOP_BYTES)
        return err_set(e, ERR_INVALID, path, "'%s' must be between 1 and %d bytes long, not %zu.",
                       path, STOP_BYTES, n);
    q->stops[q->n_stops++] = (job_stop){json_string_value(v), n};
    return 0;
}

int request_read_stop(void *record, const json_t *v, const char *path, const field_scope *scope,
                      err *e) {
    (void)scope;
    openai_request *q = request_of(record);
    if (json_is_string(v))
        return read_one_stop(q, v, path, e);
    if (!json_is_array(v))
        return field_wrong_type(path, "a string or an array of strings", v, e);
    if (json_array_size(v) > JOB_STOPS)
        return err_set(e, ERR_INVALID, path, "'%s' holds %zu sequences; at most %d are possible.",
                       path, json_array_size(v), JOB_STOPS);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (read_one_stop(q, json_array_get(v, i), json_path_element(path, i).text, e))
            return -1;
    return 0;
}

// A token id as a decimal number without sign or leading zeros, or -1.
static int64_t parse_token_id(const char *s) {
    size_t n = strlen(s);
    if (n == 0 || n > 9 || strspn(s, "0123456789") != n || (n > 1 && *s == '0'))
        return -1;
    return strtoll(s, NULL, 10);
}

static int read_one_bias(openai_request *q, const char *key, const json_t *v, const char *path,
                         err *e) {
    int64_t id = parse_token_id(key);
    if (id < 0)
        return err_set(e, ERR_INVALID, path, "'%s' is not named by a token id.", path);
    if (!json_is_number(v))
        return field_wrong_type(path, "a number", v, e);
    double bias = json_number_value(v);
    if (!(bias >= -100 && bias <= 100))
        return err_set(e, ERR_INVALID, path, "'%s' must be between -100 and 100, not %g.", path,
                       bias);
    q->sampling.bias[q->sampling.n_bias++] = (logit_bias){(int32_t)id, (float)bias};
    return 0;
}

int request_read_logit_bias(void *record, const json_t *v, const char *path,
                            const field_scope *scope, err *e) {
    (void)scope;
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    if (json_object_size(v) > SAMPLING_MAX_BIAS)
        return err_set(e, ERR_INVALID, path, "'%s' names %zu tokens; at most %d are possible.",
                       path, json_object_size(v), SAMPLING_MAX_BIAS);
    const char *key;
    json_t *bias;
    json_object_foreach((json_t *)v, key, bias) {
        if (read_one_bias(request_of(record), key, bias, json_path_member(path, key).text, e))
            return -1;
    }
    return 0;
}

int request_read_seed(void *record, const json_t *v, const char *path, const field_scope *scope,
                      err *e) {
    (void)scope;
    if (!json_is_integer(v))
        return field_wrong_type(path, "an integer", v, e);
    request_of(record)->sampling.seed = (uint64_t)json_integer_value(v);
    return 0;
}

typedef struct stream_record {
    bool include_usage;
} stream_record;

int request_read_stream_options(void *record, const json_t *v, const char *path,
                                const field_scope *scope, err *e) {
    static const field fields[] = {
        {"include_usage", FIELD_BOOL, .at = offsetof(stream_record, include_usage)},
        {"include_obfuscation", FIELD_OWN, .read = field_only_false},
        {.name = NULL},
    };
    const field *tables[] = {fields};
    stream_record r = {0};
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    if (field_read_object(v, path, tables, 1, scope, &r, e))
        return -1;
    request_of(record)->include_usage = r.include_usage;
    return 0;
}

int request_read_response_format(void *record, const json_t *v, const char *path,
                                 const field_scope *scope, err *e) {
    (void)record, (void)scope;
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    const json_t *type = json_object_get(v, "type");
    if (!json_is_string(type))
        return err_set(e, ERR_INVALID, json_path_member(path, "type").text,
                       "'%s.type' is required and must be a string.", path);
    if (strcmp(json_string_value(type), "text") != 0 || json_object_size(v) != 1)
        return err_set(e, ERR_UNSUPPORTED, path, "'%s' is supported as {\"type\": \"text\"} only.",
                       path);
    return 0;
}

int request_read_modalities(void *record, const json_t *v, const char *path,
                            const field_scope *scope, err *e) {
    (void)record, (void)scope;
    if (!json_is_array(v))
        return field_wrong_type(path, "an array", v, e);
    const char *first = json_string_value(json_array_get(v, 0));
    if (json_array_size(v) != 1 || !first || strcmp(first, "text") != 0)
        return err_set(e, ERR_UNSUPPORTED, path, "'%s' is supported as [\"text\"] only.", path);
    return 0;
}

int request_read_service_tier(void *record, const json_t *v, const char *path,
                              const field_scope *scope, err *e) {
    (void)scope;
    if (!json_is_string(v))
        return field_wrong_type(path, "a string", v, e);
    const char *tier = json_string_value(v);
    if (strcmp(tier, "auto") != 0 && strcmp(tier, "default") != 0)
        return err_set(e, ERR_UNSUPPORTED, path,
                       "'%s' is supported as \"auto\" or \"default\" only.", path);
    request_of(record)->wants_tier = true;
    return 0;
}

// Labels for stored completions; nothing is stored, so there is nothing to keep them with.
int request_read_metadata(void *record, const json_t *v, const char *path, const field_scope *scope,
                          err *e) {
    (void)record, (void)scope;
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    if (json_object_size(v) > METADATA_PAIRS)
        return err_set(e, ERR_INVALID, path, "'%s' holds %zu pairs; at most %d are possible.", path,
                       json_object_size(v), METADATA_PAIRS);
    const char *key;
    json_t *text;
    json_object_foreach((json_t *)v, key, text) {
        if (!json_is_string(text))
            return field_wrong_type(json_path_member(path, key).text, "a string", text, e);
    }
    return 0;
}
