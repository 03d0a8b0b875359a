// `tiergate up`: everything on one machine, supervised. Private to cli/up*.c; one thread.
#ifndef CLI_UP_H
#define CLI_UP_H
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>
#include "auth/apikey.h"
#include "base/buf.h"
#include "base/config.h"
#include "base/err.h"
#include "base/secret.h"
#include "cli/process.h"

typedef enum child_kind {
    CHILD_POSTGRES,
    CHILD_REDIS,
    CHILD_WORKER,
    CHILD_GATEWAY
} child_kind; // in order of starting

typedef struct child {
    child_kind kind;
    char name[80];
    char log_path[CONFIG_TEXT + 96];
    const config_model *model;      // of a worker
    pid_t pid;                      // 0: not running
    bool ready, was_ready;          // now; ever
    int failures;                   // in a row, for the back-off
    int64_t started_ms, restart_ms; // monotonic
    int ready_fd;                   // read end of a role's ready line; -1
    buf line;
    json_t *info; // what the ready line said
} child;

#define UP_CHILDREN (CONFIG_MODELS + 3)

typedef struct up {
    config c;
    const char *ready_file; // or NULL
    char self[CONFIG_TEXT]; // our executable
    char run_dir[128];      // sockets
    bool own_run_dir; // made under /tmp because the data directory's path is too long for a socket
    bool private_postgres, private_redis;
    int pg_dir_fd,
        pg_socket_fd; // handles of directories that the server's account could not reach by path
    int signal_fd;
    int lock_fd; // inherited by every child
    child children[UP_CHILDREN];
    int n_children;
    char api_key[APIKEY_TEXT], admin_key[APIKEY_TEXT];
    bool hurry;         // Ctrl-C came again while stopping
    bool progress_open; // a progress line stands unfinished on the terminal
} up;

// up_servers.c: the real PostgreSQL and Redis with their own data directory, on unix sockets.
int servers_prepare(
    up *u, err *e); // directories, addresses in u->c; first start of PostgreSQL makes the cluster
int postgres_start(up *u, child *k, err *e);
bool postgres_is_ready(up *u); // makes the database at the first time
int redis_start(up *u, child *k, err *e);
bool redis_is_ready(up *u);
void servers_release(up *u);

// up_children.c: starting, waiting, restarting, stopping.
child *child_add(up *u, child_kind kind, const char *name, const config_model *model);
int child_start(up *u, child *k, err *e);
int child_wait_ready(up *u, child *k, int timeout_s, err *e); // ERR_CANCELLED on SIGINT or SIGTERM
bool signal_came(up *u, int ms);                              // SIGINT or SIGTERM, within ms
int children_supervise(up *u, err *e);                        // until SIGINT or SIGTERM
void children_stop(up *u);
void up_say(up *u, const char *format, ...) __attribute__((format(printf, 2, 3)));

// up_ready.c: keys, the ready file and what is printed.
int keys_prepare(up *u, err *e);
int ready_write(up *u, err *e); // u->ready_file, anew after every restart of a child
void ready_print(up *u);

#endif
