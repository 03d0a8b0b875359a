// Chooses the backend: by name, by TIERGATE_CPU, or the best this processor has. Owns nothing.
// Knows which instruction sets each backend needs and whether the operating system saves their
// registers; the backends never ask.
#include "kernels/backend.h"
#include <stdlib.h>
#include <string.h>

typedef struct backend {
    const char *name;
    bool (*supported)(void);
    const char *needs; // for the error
    int (*open)(int n_threads, ops **out, err *e);
} backend;

static bool always(void) { return true; }

// The best first.
static const backend backends[] = {
    {"ref", always, "nothing", ref_open},
};

static const backend *find(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++)
        if (strcmp(backends[i].name, name) == 0)
            return &backends[i];
    return NULL;
}

static const backend *best(void) {
    const backend *b = backends;
    while (!b->supported())
        b++;
    return b;
}

bool ops_supported(const char *name) {
    const backend *b = find(name);
    return b && b->supported();
}

kv_type ops_kv_type(const ops *o) { return o->kv; }

int ops_open(const char *name, int n_threads, ops **out, err *e) {
    const char *field = "backend";
    if (!name || !*name) {
        name = getenv("TIERGATE_CPU");
        field = "TIERGATE_CPU";
    }
    const backend *b = name && *name ? find(name) : best();
    if (!b)
        return err_set(e, ERR_INVALID, field, "%s: \"%s\" is none of ref, avx2, avx512", field,
                       name);
    if (!b->supported())
        return err_set(e, ERR_UNSUPPORTED, field, "backend %s needs a processor with %s", b->name,
                       b->needs);
    return b->open(n_threads, out, e);
}
