// One table from err.code to what a client is told. Pure functions, any thread. Does not send
// anything (server/openai_call.c does) and invents no message: what e says is what the client
// reads, except for errors of ours whose text may name internals.
#include "server/openai_error.h"
#include <stddef.h>
#include <string.h>

typedef struct row {
    err_code code;
    openai_error told;
} row;

#define CALLER "invalid_request_error"
#define OURS "server_error"

static const row table[] = {
    {ERR_INVALID, {400, CALLER, "invalid_request", 0, false}},
    {ERR_UNSUPPORTED, {400, CALLER, "unsupported_parameter", 0, false}},
    {ERR_NO_FIM, {400, CALLER, "fim_not_supported", 0, false}},
    {ERR_CONTEXT_LENGTH, {400, CALLER, "context_length_exceeded", 0, false}},
    {ERR_KEY, {401, CALLER, "invalid_api_key", 0, false}},
    {ERR_MODEL_DENIED, {403, CALLER, "model_not_allowed", 0, false}},
    {ERR_PERMISSION, {403, CALLER, "permission_denied", 0, false}},
    {ERR_MODEL_UNKNOWN, {404, CALLER, "model_not_found", 0, false}},
    {ERR_NOT_FOUND, {404, CALLER, "not_found", 0, false}},
    {ERR_METHOD, {405, CALLER, "method_not_allowed", 0, false}},
    {ERR_IN_PROGRESS, {409, CALLER, "request_in_progress", 1000, false}},
    {ERR_SUPERSEDED, {409, CALLER, "superseded", 0, true}},
    {ERR_IDEM_MISMATCH, {422, CALLER, "idempotency_mismatch", 0, false}},
    {ERR_TOO_LARGE, {413, CALLER, "request_too_large", 0, false}},
    {ERR_RATE, {429, "rate_limit_error", "rate_limit_exceeded", 1000, false}},
    {ERR_QUOTA, {429, "insufficient_quota", "insufficient_quota", 0, true}},
    {ERR_CANCELLED, {499, CALLER, "client_closed_request", 0, true}},
    {ERR_POISON, {500, OURS, "poison_request", 0, true}},
    {ERR_OVERLOADED, {503, OURS, "server_is_overloaded", 1000, false}},
    {ERR_DEPENDENCY, {503, OURS, "dependency_unavailable", 1000, false}},
    {ERR_DEADLINE, {504, OURS, "deadline_exceeded", 0, true}},
    // ERR_INTERNAL, ERR_IO, ERR_FORMAT and whatever is forgotten here
    {ERR_NONE, {500, OURS, "server_error", 0, false}},
};

openai_error openai_error_of(const err *e) {
    const row *r = table;
    while (r->code != ERR_NONE && r->code != e->code)
        r++;
    openai_error told = r->told;
    if (e->retry_ms > 0 && !told.is_permanent)
        told.retry_ms = e->retry_ms;
    return told;
}

// Text of files and sockets of ours is for the log, not for clients.
static const char *public_message(const err *e) {
    bool is_inner = e->code == ERR_NONE || e->code == ERR_INTERNAL || e->code == ERR_IO ||
                    e->code == ERR_FORMAT;
    if (is_inner || !e->message[0])
        return "The server had an error while processing the request.";
    return e->message;
}

static void put_text_or_null(buf *out, const char *s) {
    if (s && s[0])
        buf_put_json(out, s, strlen(s));
    else
        buf_puts(out, "null");
}

static void put_body(buf *out, const char *message, const char *type, const char *param,
                     const char *code) {
    buf_puts(out, "{\"error\":{\"message\":");
    put_text_or_null(out, message);
    buf_puts(out, ",\"type\":");
    put_text_or_null(out, type);
    buf_puts(out, ",\"param\":");
    put_text_or_null(out, param);
    buf_puts(out, ",\"code\":");
    put_text_or_null(out, code);
    buf_puts(out, "}}");
}

void openai_error_body(const err *e, buf *out) {
    openai_error told = openai_error_of(e);
    put_body(out, public_message(e), told.type, e->param, told.code);
}

void openai_error_transport(int status, const err *e, buf *out) {
    static const struct {
        int status;
        const char *code, *message;
    } known[] = {
        {400, "invalid_request", "The request is not valid HTTP/1.1."},
        {408, "request_timeout", "The request did not arrive in time."},
        {413, "request_too_large", "The body of the request is too large."},
        {417, "expectation_failed", "Only the expectation 100-continue is known."},
        {431, "headers_too_large", "The head of the request is too large."},
        {503, "server_is_overloaded", "The server has no room for another connection."},
    };
    const char *code = status >= 500 ? "server_error" : "invalid_request";
    const char *message = "The request could not be answered.";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].status == status) {
            code = known[i].code;
            message = known[i].message;
        }
    bool has_text = e && e->code != ERR_NONE && e->message[0];
    put_body(out, has_text ? public_message(e) : message, status >= 500 ? OURS : CALLER,
             e ? e->param : NULL, code);
}
