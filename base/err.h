// One result convention for the whole house: a fallible call returns 0 or -1 and fills an `err`.
// err.code becomes an HTTP status in one function only (server/openai_error.c).
#ifndef BASE_ERR_H
#define BASE_ERR_H

typedef enum err_code {
    ERR_NONE = 0,
    // the caller's mistake
    ERR_INVALID,        // malformed or out of range; param names the field
    ERR_UNSUPPORTED,    // understood, but not built or not possible for this model
    ERR_NO_FIM,         // the model has no tokens for filling in the middle
    ERR_CONTEXT_LENGTH, // prompt + wanted tokens exceed the model's context
    ERR_KEY,            // unknown, expired or revoked key
    ERR_MODEL_DENIED,   // known caller, model not assigned
    ERR_PERMISSION,     // known caller, role not sufficient
    ERR_MODEL_UNKNOWN,
    ERR_NOT_FOUND,
    ERR_METHOD,
    ERR_IN_PROGRESS,   // same Idempotency-Key, first one still running
    ERR_IDEM_MISMATCH, // same Idempotency-Key, other body
    ERR_SUPERSEDED,    // by a newer request of the same session
    ERR_TOO_LARGE,
    ERR_RATE,      // a window or a concurrency limit; retry_ms says when
    ERR_QUOTA,     // a budget; waiting for it does not help soon
    ERR_CANCELLED, // the client went away
    // ours
    ERR_INTERNAL,
    ERR_POISON,     // the request killed its workers
    ERR_OVERLOADED, // queue full
    ERR_DEPENDENCY, // Redis or Postgres does not answer
    ERR_DEADLINE,
    ERR_IO,     // a file or socket of ours
    ERR_FORMAT, // a file of ours is malformed (GGUF, configuration, ...)
} err_code;

// Plain data. Clear with `err e = {0};`. retry_ms: 0 = say nothing.
typedef struct err {
    err_code code;
    int retry_ms;
    char param[64];
    char message[320];
} err;

// Fills e (NULL: nothing is kept) and returns -1, so that `return err_set(e, ...)` reads well.
// param may be NULL.
int err_set(err *e, err_code code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

// Puts "context: " before the message that e already holds and returns -1.
int err_wrap(err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Start-up and broken invariants only: logs the message and exits with status 1.
_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
