// The one route table of the API listener: {method, path, role, handler}.
#ifndef SERVER_ROUTES_H
#define SERVER_ROUTES_H
#include "base/err.h"

typedef struct call call;

typedef struct route {
    const char *method;
    const char *path; // "/v1/models/*": the rest is the handler's, as call.rest
    unsigned role;    // auth_role bits the key must have one of
    void (*handler)(call *c);
    const char *name; // in logs and metrics
} route;

extern const route api_routes[];
extern const int n_api_routes;

// The route of a request (HEAD goes where GET goes); *rest is what stands for '*', else "".
// ERR_NOT_FOUND, or ERR_METHOD with the methods of that path in allow ("GET, HEAD").
const route *route_find(const char *method, const char *path, const char **rest, char allow[64],
                        err *e);

#endif
