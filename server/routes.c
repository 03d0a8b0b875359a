// The routes and their matching. Static data, any thread. Does not check keys.
#include "server/routes.h"
#include "auth/auth.h"
#include "server/openai_handlers.h"
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

const route api_routes[] = {
    {"GET", "/v1/models", ROLE_INFERENCE, handle_models, "models"},
    {"GET", "/v1/models/*", ROLE_INFERENCE, handle_model, "model"},
    {"POST", "/v1/chat/completions", ROLE_INFERENCE, handle_chat, "chat"},
    {"POST", "/v1/completions", ROLE_INFERENCE, handle_completions, "completions"},
    {"POST", "/v1/tokenize", ROLE_INFERENCE, handle_tokenize, "tokenize"},
    {"POST", "/v1/detokenize", ROLE_INFERENCE, handle_detokenize, "detokenize"},
};
const int n_api_routes = sizeof api_routes / sizeof *api_routes;

static bool path_matches(const route *r, const char *path, const char **rest) {
    size_t n = strlen(r->path);
    bool is_open = r->path[n - 1] == '*';
    *rest = "";
    if (!is_open)
        return strcmp(r->path, path) == 0;
    if (strncmp(r->path, path, n - 1) != 0 || !path[n - 1])
        return false;
    *rest = path + n - 1;
    return true;
}

const route *route_find(const char *method, const char *path, const char **rest, char allow[64],
                        err *e) {
    bool is_known = false, is_head = strcmp(method, "HEAD") == 0;
    for (const route *r = api_routes; r < api_routes + n_api_routes; r++) {
        if (!path_matches(r, path, rest))
            continue;
        if (strcmp(r->method, is_head ? "GET" : method) == 0)
            return r;
        is_known = true;
        snprintf(allow, 64, "%s%s, OPTIONS", r->method,
                 strcmp(r->method, "GET") == 0 ? ", HEAD" : "");
    }
    if (is_known)
        err_set(e, ERR_METHOD, NULL, "This path does not know the method %.20s; it knows %s.",
                method, allow);
    else
        err_set(e, ERR_NOT_FOUND, NULL, "There is no such path: %.200s", path);
    return NULL;
}
