// The low-rank adapters that are loaded: found by tenant and id, read from
// DIR/<tenant>/<id>.gguf when first wanted, given up least recently used first. An id ends in the
// first 16 hexadecimal digits of its file's SHA-256, which is checked, so an id is one content for
// ever. A thread of its own reads, checks and packs, one after another; all calls are the step
// thread's.
#ifndef WORKER_ADAPTERS_H
#define WORKER_ADAPTERS_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "engine/engine.h"

typedef struct adapters adapters;

typedef struct adapter {     // valid while it is held; changes in adapters_settle only
    const engine_adapter *a; // NULL: not loaded yet
    err why;                 // ERR_NONE, or why it will never be
    int holders;
} adapter;

typedef struct adapters_stats {
    int64_t loads;
    int loaded;
    size_t bytes;
} adapters_stats;

// dir is copied. bytes: what may stay loaded; those in use stay whatever they take. news(ctx) is
// called by the loading thread whenever adapters_settle has something to do.
adapters *adapters_new(engine *g, const char *dir, size_t bytes, void (*news)(void *ctx),
                       void *ctx);
// Waits for the one that is being loaded, begins no other. Nobody holds one; before the engine is
// closed.
void adapters_free(adapters *s);
// Holds it, and has it loaded unless it is or soon will be. One that failed is tried anew.
adapter *adapters_hold(adapters *s, const char *tenant, const char *id);
// Takes over what was loaded, or failed. why's codes: ERR_IO: no such file; ERR_FORMAT: it is not
// the one the id names, or as engine_adapter_open.
void adapters_settle(adapters *s);
void adapter_let_go(adapter *a); // NULL is fine
adapters_stats adapters_get_stats(const adapters *s);

#endif
