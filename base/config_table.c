// The table of configuration keys: one row per key, from which parsing, --help, the sample file and
// docs/config.md come. Owns nothing that changes; any thread. Does not read files (config.c does).
#include "base/config_internal.h"
#include <string.h>

#define K (1024ll)
#define M (1024 * K)
#define G (1024 * M)

#define FIELD(f) .offset = offsetof(config, f), .size = sizeof(((config *)0)->f)
#define MODEL_FIELD(f) .offset = offsetof(config_model, f), .size = sizeof(((config_model *)0)->f)
#define LIVE .reload = true

const config_row config_rows[] = {
    {"general", "data_dir", CONFIG_STRING, FIELD(data_dir), .least = 1,
     .value = "/var/lib/tiergate",
     .help = "Directory for what must survive a restart: secrets, certificates, the journal."},
    {"general", "adapters_dir", CONFIG_STRING, FIELD(adapters_dir), .value = "",
     .help = "Where `tiergate adapter import` puts adapters and workers find them, the same files "
             "on every machine; empty: DATA_DIR/adapters."},
    {"general", "log_level", CONFIG_CHOICE, FIELD(log_level), LIVE,
     .choices = "debug|info|warn|error", .value = "info", .help = "Least level that is logged."},

    {"gateway", "listen", CONFIG_LISTEN, FIELD(listen), .value = "127.0.0.1:8443",
     .help = "Where clients reach the API; port 0 lets the kernel choose."},
    {"gateway", "admin_listen", CONFIG_LISTEN, FIELD(admin_listen), .value = "127.0.0.1:9443",
     .help = "Where the administration API and the console are served."},
    {"gateway", "ops_listen", CONFIG_LISTEN, FIELD(ops_listen), .value = "127.0.0.1:9464",
     .help = "Where /healthz, /readyz and /metrics are served, without TLS."},
    {"gateway", "tls_cert", CONFIG_STRING, FIELD(tls_cert), LIVE, .value = "",
     .help = "Certificate chain (PEM); empty: a private CA and a certificate are made in "
             "data_dir/tls."},
    {"gateway", "tls_key", CONFIG_STRING, FIELD(tls_key), LIVE, .value = "",
     .help = "File with the private key (PEM) of tls_cert."},
    {"gateway", "tls_names", CONFIG_STRING, FIELD(tls_names), .value = "localhost,127.0.0.1,::1",
     .help = "Names and addresses of the made certificate, comma-separated."},
    {"gateway", "plain_http", CONFIG_SWITCH, FIELD(plain_http), .value = "false",
     .help = "Serve the API without TLS: for loopback, or behind a proxy that ends TLS."},
    {"gateway", "reactors", CONFIG_NUMBER, FIELD(reactors), .least = 0, .most = 256, .value = "0",
     .help = "Threads that serve connections, at most one per core; 0: chosen by the number of "
             "cores."},
    {"gateway", "pool_threads", CONFIG_NUMBER, FIELD(pool_threads), .least = 1, .most = 256,
     .value = "4", .help = "Threads for TLS handshakes, large bodies and the database."},
    {"gateway", "body_bytes", CONFIG_SIZE, FIELD(body_bytes), .least = K, .most = G,
     .value = "8MiB", .help = "Largest request body."},
    {"gateway", "head_bytes", CONFIG_SIZE, FIELD(head_bytes), .least = K, .most = M,
     .value = "16KiB", .help = "Largest request line and header fields together."},
    {"gateway", "head_ms", CONFIG_NUMBER, FIELD(head_ms), .least = 100, .most = 600000,
     .value = "10000", .help = "Time in which a request's head must arrive, in milliseconds."},
    {"gateway", "json_depth", CONFIG_NUMBER, FIELD(json_depth), .least = 4, .most = 1024,
     .value = "64", .help = "Deepest nesting of a JSON body."},
    {"gateway", "max_messages", CONFIG_NUMBER, FIELD(max_messages), .least = 1, .most = 100000,
     .value = "2048", .help = "Most messages in one chat request."},
    {"gateway", "max_choices", CONFIG_NUMBER, FIELD(max_choices), .least = 1, .most = 128,
     .value = "8", .help = "Largest n of one request."},
    {"gateway", "max_connections", CONFIG_NUMBER, FIELD(max_connections), .least = 1,
     .most = 1000000, .value = "10000", .help = "Most client connections at a time."},
    {"gateway", "stream_buffer_bytes", CONFIG_SIZE, FIELD(stream_buffer_bytes), .least = 4 * K,
     .most = G, .value = "1MiB",
     .help = "Bytes a stream may hold back for a slow reader before it is cut."},
    {"gateway", "default_max_tokens", CONFIG_NUMBER, FIELD(default_max_tokens), LIVE, .least = 1,
     .most = 1048576, .value = "512",
     .help = "Tokens per choice that are held for a request that names no max_tokens."},
    {"gateway", "request_ms", CONFIG_NUMBER, FIELD(request_ms), LIVE, .least = 1000,
     .most = 86400000, .value = "600000",
     .help = "Deadline of a request that names none, in milliseconds."},
    {"gateway", "resume_ms", CONFIG_NUMBER, FIELD(resume_ms), LIVE, .least = 0, .most = 86400000,
     .value = "15000",
     .help = "How long a stream that lost its worker waits for another one, in milliseconds."},
    {"gateway", "queue_per_tenant", CONFIG_NUMBER, FIELD(queue_per_tenant), LIVE, .least = 1,
     .most = 10000000, .value = "10000",
     .help = "Most requests of one tenant that wait in a tier."},
    {"gateway", "queue_per_tier", CONFIG_NUMBER, FIELD(queue_per_tier), LIVE, .least = 1,
     .most = 10000000, .value = "50000", .help = "Most requests that wait in a tier."},
    {"gateway", "journal_bytes", CONFIG_SIZE, FIELD(journal_bytes), .least = M, .most = 1024 * G,
     .value = "1GiB",
     .help =
         "Size of the journal of usage rows not yet in PostgreSQL at which requests are refused."},
    {"gateway", "drain_grace_ms", CONFIG_NUMBER, FIELD(drain_grace_ms), LIVE, .least = 0,
     .most = 600000, .value = "5000",
     .help = "How long after SIGTERM everything is still served while /readyz says 503, so that a "
             "balancer looks away first, in milliseconds."},
    {"gateway", "drain_ms", CONFIG_NUMBER, FIELD(drain_ms), LIVE, .least = 0, .most = 86400000,
     .value = "30000",
     .help =
         "How long after that open requests may take to end, in milliseconds; what is open then "
         "ends with an error."},

    {"worker", "threads", CONFIG_NUMBER, FIELD(threads), .least = 0, .most = 1024, .value = "0",
     .help = "Threads that compute on the CPU; 0: one per core."},
    {"worker", "pin", CONFIG_SWITCH, FIELD(pin), .value = "false",
     .help = "Keeps each of these threads but the first on a processor of its own, for a machine "
             "(or a set of processors) that serves one worker and nothing else: workers do not "
             "know of each other and would take the same ones."},
    {"worker", "slots", CONFIG_NUMBER, FIELD(slots), .least = 1, .most = 4096, .value = "16",
     .help = "Sequences that run at a time."},
    {"worker", "step_tokens", CONFIG_NUMBER, FIELD(step_tokens), .least = 1, .most = 65536,
     .value = "512", .help = "Most tokens (decoded and prefilled) of one pass of the engine."},
    {"worker", "prefill_percent", CONFIG_NUMBER, FIELD(prefill_percent), .least = 0, .most = 100000,
     .value = "80",
     .help = "While sequences decode, the time that prompts may take of a pass, in percent of the "
             "decoding's own (but 4 tokens always go on). 0: no such limit."},
    {"worker", "draft_rows", CONFIG_NUMBER, FIELD(draft_rows), .least = 0, .most = 64, .value = "8",
     .help = "A pass with fewer sequences is filled up to so many rows with guesses from the text "
             "so far (prompt lookup); they change the speed, never the text. 0: none."},
    {"worker", "kv_bytes", CONFIG_SIZE, FIELD(kv_bytes), .least = M, .most = 16384 * G,
     .value = "1GiB", .help = "Memory for the KV cache."},
    {"worker", "kv_type", CONFIG_CHOICE, FIELD(kv_type), .choices = "f16|bf16|f32|q8",
     .value = "f16",
     .help = "Type of the numbers in the KV cache; q8 (8 bits and a scale per key and value) holds "
             "nearly twice the tokens of f16 in the same memory."},
    {"worker", "adapter_bytes", CONFIG_SIZE, FIELD(adapter_bytes), .least = 0, .most = 1024 * G,
     .value = "1GiB",
     .help = "Memory that adapters may take which no request uses now; those used least recently "
             "are given up."},
    {"worker", "max_context", CONFIG_NUMBER, FIELD(max_context), .least = 0, .most = 16777216,
     .value = "0", .help = "Longest sequence in tokens; 0: the model's own limit."},
    {"worker", "cpu", CONFIG_CHOICE, FIELD(cpu), .choices = "|ref|avx2|avx512", .value = "",
     .help = "CPU kernels to use; empty: the best this machine has."},
    {"worker", "tier", CONFIG_NAME, FIELD(tier), .value = "",
     .help = "Tier whose queue this worker serves; empty: that of the only model."},
    {"worker", "drain_ms", CONFIG_NUMBER, FIELD(worker_drain_ms), .least = 0, .most = 86400000,
     .value = "30000",
     .help =
         "How long after SIGTERM running sequences may take to end, in milliseconds; the others "
         "are given back to the queue."},
    {"worker", "ops_listen", CONFIG_LISTEN, FIELD(worker_ops_listen), .value = "127.0.0.1:9465",
     .help = "Where the worker serves /healthz, /readyz and /metrics, without TLS."},

    {"redis", "address", CONFIG_REDIS, FIELD(redis_address), .value = "",
     .help = "unix:/path or host:port of a Redis with maxmemory-policy noeviction; empty: "
             "`tiergate up` starts a private one."},

    {"postgres", "url", CONFIG_POSTGRES, FIELD(postgres_url), .value = "",
     .help = "postgresql:// URL of the ledger, with passfile=FILE rather than a password; empty: "
             "`tiergate up` starts a private one."},
    {"postgres", "pool", CONFIG_NUMBER, FIELD(postgres_pool), .least = 1, .most = 256, .value = "4",
     .help = "Connections per gateway."},

    {"model", "path", CONFIG_STRING, MODEL_FIELD(path), .least = 1, .value = "",
     .help = "GGUF file of the model, or a Hugging Face directory (docs/models.md)."},
    {"model", "tier", CONFIG_NAME, MODEL_FIELD(tier), .least = 1, .value = "",
     .help = "Tier that serves it, for example 7b, 14b or 72b: the queue its requests wait in."},
    {"model", "template", CONFIG_NAME, MODEL_FIELD(template_name), .value = "",
     .help = "Chat template; empty: the one the file names."},
    {"model", "max_context", CONFIG_NUMBER, MODEL_FIELD(max_context), .least = 0, .most = 16777216,
     .value = "0", .help = "Longest sequence in tokens; 0: the model's own limit."},
    {"model", "price_in", CONFIG_NUMBER, MODEL_FIELD(price_in), LIVE, .least = 0,
     .most = 1000000000000, .value = "0",
     .help = "Price of a prompt token, in nano-units of money."},
    {"model", "price_cached", CONFIG_NUMBER, MODEL_FIELD(price_cached), LIVE, .least = 0,
     .most = 1000000000000, .value = "0",
     .help = "Price of a prompt token that was found in the cache."},
    {"model", "price_out", CONFIG_NUMBER, MODEL_FIELD(price_out), LIVE, .least = 0,
     .most = 1000000000000, .value = "0", .help = "Price of a completion token."},
};
const int config_n_rows = (int)(sizeof config_rows / sizeof *config_rows);

const config_row *config_find_row(const char *section, const char *name) {
    for (int i = 0; i < config_n_rows; i++)
        if (strcmp(config_rows[i].section, section) == 0 && strcmp(config_rows[i].name, name) == 0)
            return &config_rows[i];
    return NULL;
}

bool config_has_section(const char *section) {
    for (int i = 0; i < config_n_rows; i++)
        if (strcmp(config_rows[i].section, section) == 0)
            return true;
    return false;
}
