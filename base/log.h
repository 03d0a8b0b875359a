// JSON lines on stderr: {"ts","level","event",...}. Thread-safe, one write(2) a line. Secrets and
// prompts are never passed in.
#ifndef BASE_LOG_H
#define BASE_LOG_H

typedef enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR } log_level;

// role is written in every line ("gateway", "worker", ...). Before this call lines carry no role.
void log_init(const char *role, log_level least);
void log_set_level(log_level least);
// fields is a jansson pack format for one object ("{s:s,s:i}") or NULL. event: dotted, lower case:
// "request.end".
void log_event(log_level level, const char *event, const char *fields, ...);

#endif
