// Readers of chat messages. Content is a string or an array of text parts, which are joined. Which
// roles may follow each other is the template's business (model/template).
#include "server/openai_request_parts.h"
#include <string.h>

typedef struct message_record {
    field_text role, content, tool_call_id;
} message_record;

typedef struct part_record {
    field_text type, text;
} part_record;

#define AT(record, member) .at = offsetof(record, member)

static const field part_fields[] = {
    {"type", FIELD_TEXT, AT(part_record, type)},
    {"text", FIELD_TEXT, AT(part_record, text)},
    {.name = NULL},
};

// A part of another kind is refused by its type, not by the members it has.
static int check_part_type(const json_t *v, const char *path, err *e) {
    json_path at = json_path_member(path, "type");
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    const json_t *type = json_object_get(v, "type");
    if (!type || json_is_null(type))
        return field_missing(at.text, e);
    if (!json_is_string(type))
        return field_wrong_type(at.text, "a string", type, e);
    if (strcmp(json_string_value(type), "text") != 0)
        return err_set(e, ERR_UNSUPPORTED, at.text,
                       "'%s' is \"%.40s\"; only \"text\" is supported.", at.text,
                       json_string_value(type));
    return 0;
}

static int read_part(const json_t *v, const char *path, const field_scope *scope, field_text *out,
                     err *e) {
    part_record r = {0};
    const field *tables[] = {part_fields};
    if (check_part_type(v, path, e) || field_read_object(v, path, tables, 1, scope, &r, e))
        return -1;
    if (!r.text.s)
        return field_missing(json_path_member(path, "text").text, e);
    *out = r.text;
    return 0;
}

static int read_parts(const json_t *v, const char *path, const field_scope *scope, field_text *out,
                      err *e) {
    size_t n = json_array_size(v), bytes = 0;
    if (n == 0)
        return err_set(e, ERR_INVALID, path, "'%s' must not be empty.", path);
    field_text *parts = arena_alloc(scope->arena, n * sizeof *parts);
    for (size_t i = 0; i < n; i++) {
        json_path at = json_path_element(path, i);
        if (read_part(json_array_get(v, i), at.text, scope, &parts[i], e))
            return -1;
        bytes += parts[i].n;
    }
    char *joined = arena_alloc(scope->arena, bytes + 1);
    *out = (field_text){joined, bytes};
    for (size_t i = 0; i < n; i++) {
        memcpy(joined, parts[i].s, parts[i].n);
        joined += parts[i].n;
    }
    return 0;
}

static int read_content(void *record, const json_t *v, const char *path, const field_scope *scope,
                        err *e) {
    message_record *m = record;
    if (json_is_array(v))
        return read_parts(v, path, scope, &m->content, e);
    if (!json_is_string(v))
        return field_wrong_type(path, "a string or an array of parts", v, e);
    m->content = (field_text){json_string_value(v), json_string_length(v)};
    return 0;
}

static const field message_fields[] = {
    {"role", FIELD_TEXT, AT(message_record, role)},
    {"content", FIELD_OWN, .read = read_content},
    {"tool_call_id", FIELD_TEXT, AT(message_record, tool_call_id)},
    {"tool_calls", FIELD_OWN, .read = field_only_empty_array},
    {"annotations", FIELD_OWN, .read = field_only_empty_array},
    {"name", .kind = FIELD_REFUSED}, // no template writes it
    {"function_call", .kind = FIELD_REFUSED},
    {"refusal", .kind = FIELD_REFUSED},
    {"audio", .kind = FIELD_REFUSED},
    {.name = NULL},
};

static int check_role(const message_record *m, const char *path, err *e) {
    static const char *const known[] = {"system", "developer", "user", "assistant", "tool"};
    json_path at = json_path_member(path, "role");
    if (!m->role.s)
        return field_missing(at.text, e);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(m->role.s, known[i]) == 0)
            return 0;
    return err_set(e, ERR_INVALID, at.text,
                   "'%s' must be system, developer, user, assistant or tool, not \"%.40s\".",
                   at.text, m->role.s);
}

static int check_message(const message_record *m, const char *path, err *e) {
    if (check_role(m, path, e))
        return -1;
    if (!m->content.s)
        return field_missing(json_path_member(path, "content").text, e);
    bool is_tool = strcmp(m->role.s, "tool") == 0;
    json_path at = json_path_member(path, "tool_call_id");
    if (is_tool && !m->tool_call_id.s)
        return field_missing(at.text, e);
    if (!is_tool && m->tool_call_id.s)
        return err_set(e, ERR_INVALID, at.text, "'%s' is possible in a message of role tool only.",
                       at.text);
    return 0;
}

static int read_message(const json_t *v, const char *path, const field_scope *scope,
                        chat_message *out, err *e) {
    message_record m = {0};
    const field *tables[] = {message_fields};
    if (!json_is_object(v))
        return field_wrong_type(path, "an object", v, e);
    if (field_read_object(v, path, tables, 1, scope, &m, e) || check_message(&m, path, e))
        return -1;
    *out = (chat_message){.role = m.role.s,
                          .content = m.content.s,
                          .n_content = m.content.n,
                          .tool_call_id = m.tool_call_id.s};
    return 0;
}

int request_read_messages(void *record, const json_t *v, const char *path, const field_scope *scope,
                          err *e) {
    openai_request *q = request_of(record);
    if (!json_is_array(v))
        return field_wrong_type(path, "an array", v, e);
    size_t n = json_array_size(v);
    if (n == 0 || n > (size_t)scope->limits->max_messages)
        return err_set(e, ERR_INVALID, path, "'%s' must hold between 1 and %d messages, not %zu.",
                       path, scope->limits->max_messages, n);
    q->messages = arena_alloc(scope->arena, n * sizeof *q->messages);
    q->n_messages = n;
    for (size_t i = 0; i < n; i++) {
        json_path at = json_path_element(path, i);
        if (read_message(json_array_get(v, i), at.text, scope, &q->messages[i], e))
            return -1;
        q->text_bytes += q->messages[i].n_content;
    }
    return 0;
}
