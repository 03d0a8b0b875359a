// Readers of prompts and token arrays. A prompt is text, texts, token ids, or arrays of token ids;
// what follows the first element must be of its kind. Ids are only checked to be numbers here: the
// vocabulary is not known yet.
#include "server/openai_request_parts.h"

static int read_text(openai_request *q, const json_t *v, const json_path *path, openai_prompt *out,
                     err *e) {
    if (!json_is_string(v))
        return field_wrong_type(path->text, "a string", v, e);
    out->text = (field_text){json_string_value(v), json_string_length(v)};
    out->path = *path;
    q->text_bytes += out->text.n;
    return 0;
}

static int read_ids(const json_t *v, const json_path *path, const field_scope *scope,
                    openai_prompt *out, err *e) {
    if (!json_is_array(v))
        return field_wrong_type(path->text, "an array of token ids", v, e);
    size_t n = json_array_size(v);
    if (n == 0 || n > INT32_MAX)
        return err_set(e, ERR_INVALID, path->text, "'%s' must hold at least one token id.",
                       path->text);
    int32_t *ids = arena_alloc(scope->arena, n * sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(v, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX) {
            json_path at = json_path_element(path->text, i);
            return err_set(e, ERR_INVALID, at.text, "'%s' must be a token id.", at.text);
        }
        ids[i] = (int32_t)value;
    }
    *out = (openai_prompt){.ids = ids, .n_ids = (int)n, .path = *path};
    return 0;
}

static openai_prompt *make_prompts(openai_request *q, size_t n, const field_scope *scope) {
    q->prompts = arena_alloc(scope->arena, n * sizeof *q->prompts);
    q->n_prompts = (int)n;
    return q->prompts;
}

static int read_many(openai_request *q, const json_t *v, const char *path, bool is_text,
                     const field_scope *scope, err *e) {
    size_t n = json_array_size(v);
    if (n > (size_t)scope->limits->max_choices)
        return err_set(e, ERR_INVALID, path, "'%s' holds %zu prompts; at most %d are possible.",
                       path, n, scope->limits->max_choices);
    openai_prompt *prompts = make_prompts(q, n, scope);
    for (size_t i = 0; i < n; i++) {
        json_path at = json_path_element(path, i);
        const json_t *one = json_array_get(v, i);
        if (is_text ? read_text(q, one, &at, &prompts[i], e)
                    : read_ids(one, &at, scope, &prompts[i], e))
            return -1;
    }
    return 0;
}

int request_read_prompt(void *record, const json_t *v, const char *path, const field_scope *scope,
                        err *e) {
    openai_request *q = request_of(record);
    json_path at = json_path_member("", path);
    if (json_is_string(v))
        return read_text(q, v, &at, make_prompts(q, 1, scope), e);
    if (!json_is_array(v))
        return field_wrong_type(path, "a string or an array", v, e);
    const json_t *first = json_array_get(v, 0);
    if (!first)
        return err_set(e, ERR_INVALID, path, "'%s' must not be empty.", path);
    if (json_is_integer(first))
        return read_ids(v, &at, scope, make_prompts(q, 1, scope), e);
    return read_many(q, v, path, !json_is_array(first), scope, e);
}

int request_read_tokens(void *record, const json_t *v, const char *path, const field_scope *scope,
                        err *e) {
    json_path at = json_path_member("", path);
    return read_ids(v, &at, scope, make_prompts(request_of(record), 1, scope), e);
}
