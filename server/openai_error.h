// Errors as clients see them: the one place where err.code becomes an HTTP status, a code word and
// headers (design: OpenAI's body {"error":{"message","type","param","code"}}, all four present).
#ifndef SERVER_OPENAI_ERROR_H
#define SERVER_OPENAI_ERROR_H
#include <stdbool.h>
#include "base/buf.h"
#include "base/err.h"

typedef struct openai_error {
    int status;        // HTTP; 499 is for logs only
    const char *type;  // static
    const char *code;  // static
    int retry_ms;      // > 0: retry-after-ms and retry-after say so
    bool is_permanent; // x-should-retry: false
} openai_error;

openai_error openai_error_of(const err *e);
// Appends the JSON body of e.
void openai_error_body(const err *e, buf *out);
// The same for an error of the transport, which already chose its status (http_options.error_body).
// e may be NULL.
void openai_error_transport(int status, const err *e, buf *out);

#endif
