// Configuration: one table row per key (base/config_table.c) drives parsing, --help,
// deploy/tiergate.example.ini and docs/config.md. Files are INI (inih); --set section.key=value
// wins over TIERGATE_SECTION_KEY in the environment, that over the file. Secrets are never values
// here: keys name files that hold them.
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"

#define CONFIG_MODELS 16
#define CONFIG_TEXT 256

typedef struct config_listen { // host:port, port 0 lets the kernel choose
    char host[64];
    uint16_t port;
} config_listen;

// [model NAME]: one model this installation serves.
typedef struct config_model {
    char name[64];          // the id clients see
    char path[CONFIG_TEXT]; // a GGUF file or a Hugging Face directory
    char tier[16];          // "7b", "14b", "72b"; the queue its jobs wait in
    char template_name[16]; // "" = what the file says
    int64_t max_context;    // tokens; 0 = the model's own
    int64_t price_in;       // nano-units per prompt token
    int64_t price_cached;   // nano-units per prompt token found in the cache
    int64_t price_out;      // nano-units per completion token
} config_model;

typedef struct config {
    char data_dir[CONFIG_TEXT];
    char adapters_dir[CONFIG_TEXT]; // as given; config_adapters_dir
    char log_level[8];
    // [gateway]
    config_listen listen, admin_listen, ops_listen;
    char tls_cert[CONFIG_TEXT]; // empty: a private CA and certificate are made in data_dir/tls
    char tls_key[CONFIG_TEXT];
    char tls_names[CONFIG_TEXT]; // names and addresses of the made certificate, comma-separated
    bool plain_http;             // no TLS on listen; for loopback or behind a proxy
    int64_t reactors, pool_threads;
    int64_t body_bytes, head_bytes, head_ms;
    int64_t json_depth, max_messages, max_choices;
    int64_t max_connections, stream_buffer_bytes;
    int64_t default_max_tokens; // granted when a request names none
    int64_t request_ms;         // deadline of a request that names none
    int64_t resume_ms;          // a stream that lost its worker waits so long for another
    int64_t queue_per_tenant, queue_per_tier;
    int64_t journal_bytes;
    int64_t drain_grace_ms, drain_ms;
    // [worker]
    int64_t worker_drain_ms;
    int64_t threads, slots, step_tokens, prefill_percent, draft_rows, kv_bytes, max_context;
    int64_t adapter_bytes;
    bool pin;
    char cpu[8];     // "", "ref", "avx2", "avx512"
    char kv_type[8]; // "f16", "bf16", "f32", "q8"
    char tier[16];
    config_listen worker_ops_listen;
    // [redis] [postgres]
    char redis_address[CONFIG_TEXT]; // unix:/path or host:port
    char postgres_url[CONFIG_TEXT];
    int64_t postgres_pool;

    config_model models[CONFIG_MODELS];
    int n_models;
} config;

// One --set argument list: n entries of "section.key=value" ("model.NAME.path=/x.gguf").
// Starts from the defaults; path NULL: no file. Unknown sections and keys, bad values and missing
// requirements are ERR_INVALID with param "section.key" and a message with file and line. Nothing
// is passed over in silence, but variables named TIERGATE_* that are no keys (orchestrators set
// such).
int config_load(config *c, const char *path, const char *const *sets, int n_sets, err *e);
// Reads the file again and takes over the keys whose row says they may change at run time;
// *n_changed counts them, names of keys that changed but need a restart are appended to
// needs_restart (comma-separated). An address with port 0 is the same as any of its host.
int config_reload(config *c, const char *path, const char *const *sets, int n_sets, int *n_changed,
                  buf *needs_restart, err *e);
// Where adapters lie; returns the length.
size_t config_adapters_dir(const config *c, char *out, size_t n);
const config_model *config_find_model(const config *c, const char *name); // NULL: none
void config_help(buf *out);                                               // for --help
// The values in force, as a file that config_load reads back.
void config_dump(const config *c, buf *out);
void config_sample(buf *out);   // the commented sample file
void config_markdown(buf *out); // docs/config.md

#endif
