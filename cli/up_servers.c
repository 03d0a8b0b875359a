// Private PostgreSQL and Redis of `tiergate up`. PostgreSQL refuses to run as root: then it runs as
// the account `postgres`, which may not be able to walk to the data directory, so it is given open
// handles of its two directories and uses them by /proc/self/fd.
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/pg.h"
#include "base/redis.h"
#include "cli/up.h"

#define SOCKET_PATH_MAX 100 // sun_path holds 108 bytes with the NUL
static const char PG_SOCKET[] = "/pg/.s.PGSQL.5432";

static const char *postgres_account(void) { return geteuid() == 0 ? "postgres" : NULL; }

// The newest server programs of Debian's packages, else what PATH finds.
static void postgres_program(const char *name, char *out, size_t n) {
    for (int version = 20; version >= 13; version--) {
        snprintf(out, n, "/usr/lib/postgresql/%d/bin/%s", version, name);
        if (!access(out, X_OK))
            return;
    }
    snprintf(out, n, "%s", name);
}

// A directory that the server's account owns, and a handle of it.
static int owned_dir(const char *path, int *fd, err *e) {
    if (file_mkdirs(path, 0700, e))
        return -1;
    const char *account = postgres_account();
    const struct passwd *p = account ? getpwnam(account) : NULL;
    if (account && !p)
        return err_set(
            e, ERR_IO, NULL,
            "PostgreSQL cannot run as root and there is no account 'postgres': install the package "
            "postgresql, or start tiergate as another user");
    if ((p && chown(path, p->pw_uid, p->pw_gid)) || chmod(path, 0700) ||
        (*fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
        return err_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    return 0;
}

static int cluster_make(up *u, err *e) {
    char program[CONFIG_TEXT], dir[32], log[CONFIG_TEXT + 32];
    postgres_program("initdb", program, sizeof program);
    snprintf(dir, sizeof dir, "/proc/self/fd/%d", u->pg_dir_fd);
    snprintf(log, sizeof log, "%s/logs/initdb.log", u->c.data_dir);
    process_spec s = {
        .name = "initdb (package postgresql)",
        .argv = (const char *[]){program, "-D", dir, "-U", "tiergate", "--auth-local=trust",
                                 "--auth-host=reject", "-E", "UTF8", "--locale=C.UTF-8", NULL},
        .log_path = log,
        .user = postgres_account(),
        .fds = {u->pg_dir_fd, u->lock_fd},
        .n_fds = 2,
    };
    return process_run(&s, e);
}

static int postgres_prepare(up *u, err *e) {
    char dir[CONFIG_TEXT + 16], sockets[sizeof u->run_dir + 8], version[CONFIG_TEXT + 32];
    snprintf(dir, sizeof dir, "%s/postgres", u->c.data_dir);
    snprintf(sockets, sizeof sockets, "%s/pg", u->run_dir);
    snprintf(version, sizeof version, "%s/PG_VERSION", dir);
    if (owned_dir(dir, &u->pg_dir_fd, e) || owned_dir(sockets, &u->pg_socket_fd, e))
        return -1;
    snprintf(u->c.postgres_url, sizeof u->c.postgres_url, "host=%s user=tiergate dbname=tiergate",
             sockets);
    if (file_exists(version))
        return 0;
    up_say(u, "making the database (once)");
    return cluster_make(u, e);
}

int postgres_start(up *u, child *k, err *e) {
    char program[CONFIG_TEXT], dir[32], sockets[64];
    postgres_program("postgres", program, sizeof program);
    snprintf(dir, sizeof dir, "/proc/self/fd/%d", u->pg_dir_fd);
    snprintf(sockets, sizeof sockets, "unix_socket_directories=/proc/self/fd/%d", u->pg_socket_fd);
    process_spec s = {
        .name = k->name,
        .argv = (const char *[]){program, "-D", dir, "-c", "listen_addresses=", "-c", sockets, "-c",
                                 "unix_socket_permissions=0700", "-c", "max_connections=100", NULL},
        .log_path = k->log_path,
        .user = postgres_account(),
        .end_signal = SIGINT, // its fast shutdown
        .fds = {u->pg_dir_fd, u->pg_socket_fd, u->lock_fd},
        .n_fds = 3,
    };
    return process_start(&s, &k->pid, e);
}

// The database of the cluster's first start.
static bool database_make(const up *u) {
    char url[CONFIG_TEXT + 64];
    err e = {0};
    pg *db = NULL;
    snprintf(url, sizeof url, "host=%s/pg user=tiergate dbname=postgres", u->run_dir);
    if (pg_connect(url, &db, &e))
        return false;
    bool made =
        !pg_exec(db, "CREATE DATABASE tiergate", &e) || !strcmp(pg_sqlstate(db), "42P04"); // exists
    pg_close(db);
    return made;
}

bool postgres_is_ready(up *u) {
    char path[CONFIG_TEXT + 32];
    snprintf(path, sizeof path, "%s%s", u->run_dir, PG_SOCKET);
    if (!file_exists(path) || !database_make(u))
        return false;
    err e = {0};
    pg *db = NULL;
    if (pg_connect(u->c.postgres_url, &db, &e))
        return false;
    bool ready = !pg_exec(db, "SELECT 1", &e);
    pg_close(db);
    return ready;
}

static int redis_prepare(up *u, err *e) {
    char dir[CONFIG_TEXT + 16], file[CONFIG_TEXT + 32];
    buf text = {0};
    snprintf(dir, sizeof dir, "%s/redis", u->c.data_dir);
    snprintf(file, sizeof file, "%s/redis.conf", dir);
    snprintf(u->c.redis_address, sizeof u->c.redis_address, "unix:%s/redis.sock", u->run_dir);
    buf_printf(
        &text,
        "port 0\nunixsocket \"%s/redis.sock\"\nunixsocketperm 700\ndir \"%s\"\ndaemonize no\n"
        "maxmemory-policy noeviction\nappendonly yes\nappendfsync everysec\nsave \"\"\n",
        u->run_dir, dir);
    int rc =
        file_mkdirs(dir, 0700, e) || file_write_atomic(file, 0600, text.data, text.len, e) ? -1 : 0;
    buf_release(&text);
    return rc;
}

int redis_start(up *u, child *k, err *e) {
    char file[CONFIG_TEXT + 32];
    snprintf(file, sizeof file, "%s/redis/redis.conf", u->c.data_dir);
    process_spec s = {
        .name = k->name,
        .argv = (const char *[]){"redis-server", file, NULL},
        .log_path = k->log_path,
        .end_signal = SIGTERM,
        .fds = {u->lock_fd},
        .n_fds = 1,
    };
    return process_start(&s, &k->pid, e);
}

bool redis_is_ready(up *u) {
    err e = {0};
    redis *r = NULL;
    redis_reply_box *box = NULL;
    if (redis_connect(u->c.redis_address, 500, &r, &e))
        return false;
    bool ready = !redis_call(r, 1, (const char *[]){"PING"}, NULL, &box, &e) &&
                 redis_value_is(redis_reply_value(box), "PONG"); // not while it loads
    redis_reply_free(box);
    redis_close(r);
    return ready;
}

static int run_dir_make(up *u, err *e) {
    int n = snprintf(u->run_dir, sizeof u->run_dir, "%s/run", u->c.data_dir);
    if (n + (int)sizeof PG_SOCKET > SOCKET_PATH_MAX) {
        snprintf(u->run_dir, sizeof u->run_dir, "/tmp/tiergate-XXXXXX");
        if (!mkdtemp(u->run_dir))
            return err_set(e, ERR_IO, NULL, "%s: %s", u->run_dir, strerror(errno));
        u->own_run_dir = true;
    }
    return file_mkdirs(u->run_dir, 0700, e);
}

int servers_prepare(up *u, err *e) {
    u->private_postgres = !*u->c.postgres_url;
    u->private_redis = !*u->c.redis_address;
    if (run_dir_make(u, e))
        return -1;
    if (u->private_postgres && postgres_prepare(u, e))
        return -1;
    return u->private_redis ? redis_prepare(u, e) : 0;
}

void servers_release(up *u) {
    if (u->pg_dir_fd >= 0)
        close(u->pg_dir_fd);
    if (u->pg_socket_fd >= 0)
        close(u->pg_socket_fd);
    if (!u->own_run_dir)
        return;
    char path[CONFIG_TEXT + 32];
    static const char *const left[] = {"/pg/.s.PGSQL.5432", "/pg/.s.PGSQL.5432.lock",
                                       "/redis.sock"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        snprintf(path, sizeof path, "%s%s", u->run_dir, left[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/pg", u->run_dir);
    rmdir(path);
    rmdir(u->run_dir);
}
