// Inside base only: what both kinds of connections to Redis share.
#ifndef BASE_REDIS_INTERNAL_H
#define BASE_REDIS_INTERNAL_H
#include "base/err.h"

typedef struct redis_address {
    char path[108]; // unix socket (the size of sun_path); "" otherwise
    char host[256];
    int port;
} redis_address;

int redis_parse_address(const char *text, redis_address *out, err *e); // ERR_INVALID
void redis_ignore_sigpipe(
    void); // unless the process handles it already; any thread, any number of times
void redis_guard_tcp(int fd); // a peer that vanished is noticed within about ten seconds

#endif
