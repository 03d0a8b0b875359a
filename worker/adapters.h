// The low-rank adapters that are loaded: found by tenant and id, read from
// DIR/<tenant>/<id>.gguf when first wanted, given up least recently used first. An id ends in the
// first 16 hexadecimal digits of its file's SHA-256, which is checked, so an id is one content for
// ever. The step thread's.
#ifndef WORKER_ADAPTERS_H
#define WORKER_ADAPTERS_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "engine/engine.h"

typedef struct adapters adapters;

typedef struct adapter { // one that is loaded; valid while it is held
    const engine_adapter *a;
    int holders;
} adapter;

typedef struct adapters_stats {
    int64_t loads;
    int loaded;
    size_t bytes;
} adapters_stats;

// dir is copied. bytes: what may stay loaded; those in use stay whatever they take.
adapters *adapters_new(engine *g, const char *dir, size_t bytes);
void adapters_free(adapters *s); // nobody holds one; before the engine is closed
// Loads if need be, and holds. ERR_IO: no such file; ERR_FORMAT: it is not the one the id names;
// else as engine_adapter_open. The message names the id.
int adapters_hold(adapters *s, const char *tenant, const char *id, adapter **out, err *e);
void adapter_let_go(adapter *a); // NULL is fine
adapters_stats adapters_get_stats(const adapters *s);

#endif
