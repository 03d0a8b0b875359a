// A short list in order of use: a worker has tens of adapters, not thousands.
#include "worker/adapters.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/id.h"
#include "base/log.h"
#include "base/secret.h"

enum { MOST_BYTES = 1 << 30, ID_TEXT = 64, DIGITS = 16 };

typedef struct entry {
    struct entry *next; // used longer ago
    adapter held;
    engine_adapter *own;
    char tenant[ID_UUID_TEXT], id[ID_TEXT];
} entry;

struct adapters {
    engine *g;
    char *dir;
    size_t most;
    entry *newest;
    adapters_stats stats;
};

adapters *adapters_new(engine *g, const char *dir, size_t bytes) {
    adapters *s = calloc(1, sizeof *s);
    if (!s || !(s->dir = strdup(dir)))
        fatal("no memory for adapters");
    s->g = g;
    s->most = bytes;
    return s;
}

static void drop(adapters *s, entry **at) {
    entry *n = *at;
    *at = n->next;
    s->stats.loaded--;
    s->stats.bytes -= engine_adapter_bytes(n->own);
    engine_adapter_close(n->own);
    free(n);
}

void adapters_free(adapters *s) {
    if (!s)
        return;
    while (s->newest)
        drop(s, &s->newest);
    free(s->dir);
    free(s);
}

// The one that nobody holds and was used longest ago; NULL: all are held.
static entry **oldest_idle(adapters *s) {
    entry **found = NULL;
    for (entry **at = &s->newest; *at; at = &(*at)->next)
        if (!(*at)->held.holders)
            found = at;
    return found;
}

static void make_room(adapters *s) {
    for (entry **at; s->stats.bytes > s->most && (at = oldest_idle(s));)
        drop(s, at);
}

// Names become a path: nothing but what import makes.
static bool is_name(const char *text) {
    return *text && *text != '.' &&
           !text[strspn(text, "abcdefghijklmnopqrstuvwxyz"
                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")];
}

static int check_digest(const char *id, const buf *bytes, err *e) {
    uint8_t digest[32];
    char text[DIGITS + 1];
    size_t n = strlen(id);
    secret_sha256(bytes->data, bytes->len, digest);
    for (int i = 0; i < DIGITS / 2; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    if (n < DIGITS || strcmp(id + n - DIGITS, text))
        return err_set(e, ERR_FORMAT, NULL, "adapter %s: its file has another content", id);
    return 0;
}

static int load(adapters *s, entry *n, err *e) {
    char path[4096];
    buf bytes = {0};
    gguf *file = NULL;
    if (!is_name(n->tenant) || !is_name(n->id))
        return err_set(e, ERR_INVALID, NULL, "an adapter of that name cannot be");
    snprintf(path, sizeof path, "%s/%s/%s.gguf", s->dir, n->tenant, n->id);
    int rc = file_read(path, MOST_BYTES, &bytes, e) || check_digest(n->id, &bytes, e) ||
                     gguf_open_memory(bytes.data, bytes.len, &file, e) ||
                     engine_adapter_open(s->g, file, &n->own, e)
                 ? -1
                 : 0;
    gguf_close(file);
    buf_release(&bytes);
    return rc;
}

static entry *take_out(adapters *s, const char *tenant, const char *id) {
    for (entry **at = &s->newest; *at; at = &(*at)->next)
        if (!strcmp((*at)->tenant, tenant) && !strcmp((*at)->id, id)) {
            entry *found = *at;
            *at = found->next;
            return found;
        }
    return NULL;
}

static entry *load_new(adapters *s, const char *tenant, const char *id, err *e) {
    entry *n = calloc(1, sizeof *n);
    if (!n)
        fatal("no memory for an adapter");
    snprintf(n->tenant, sizeof n->tenant, "%s", tenant);
    snprintf(n->id, sizeof n->id, "%s", id);
    if (load(s, n, e)) {
        free(n);
        return NULL;
    }
    n->held.a = n->own;
    s->stats.loads++;
    s->stats.loaded++;
    s->stats.bytes += engine_adapter_bytes(n->own);
    log_event(LOG_INFO, "worker.adapter_loaded", "{s:s,s:s,s:I}", "tenant", tenant, "adapter", id,
              "bytes", (long long)engine_adapter_bytes(n->own));
    return n;
}

int adapters_hold(adapters *s, const char *tenant, const char *id, adapter **out, err *e) {
    entry *n = take_out(s, tenant, id);
    if (!n && !(n = load_new(s, tenant, id, e)))
        return -1;
    n->next = s->newest;
    s->newest = n;
    n->held.holders++;
    make_room(s);
    *out = &n->held;
    return 0;
}

void adapter_let_go(adapter *a) {
    if (a)
        a->holders--;
}

adapters_stats adapters_get_stats(const adapters *s) { return s->stats; }
