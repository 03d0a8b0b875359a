// `tiergate up`: private PostgreSQL and Redis (unless addresses are given), migrations, one worker
// per configured model, one gateway; all supervised in the foreground. Owns the data directory
// while it runs (a lock) and every child.
#include "cli/up.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/migrate.h"
#include "cli/options.h"
#include "cli/settings.h"

enum { START_S = 120 };

// Does the `tiergate up` that wrote the lock file still run?
static bool owner_runs(const up *u) {
    char text[16] = "";
    ssize_t n = pread(u->lock_fd, text, sizeof text - 1, 0);
    pid_t pid = n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
    return pid > 0 && (!kill(pid, 0) || errno == EPERM);
}

// The lock is shared with all children, so that it stands until the last one has ended: after a
// kill -9 of their parent they are waited for.
static int lock_take(up *u, err *e) {
    int64_t until = clock_mono_ms() + START_S * 1000;
    bool told = false;
    while (flock(u->lock_fd, LOCK_EX | LOCK_NB)) {
        if (owner_runs(u))
            return err_set(e, ERR_IO, NULL,
                           "another `tiergate up` uses %s; stop it or give another --data",
                           u->c.data_dir);
        if (clock_mono_ms() > until)
            return err_set(e, ERR_IO, NULL, "what an earlier `tiergate up` started still uses %s",
                           u->c.data_dir);
        if (!told)
            up_say(u, "waiting for what an earlier `tiergate up` started to end");
        told = true;
        if (signal_came(u, 100))
            return err_set(e, ERR_CANCELLED, NULL, "stopped while waiting");
    }
    return 0;
}

static int lock_data(up *u, err *e) {
    char path[CONFIG_TEXT + 16], text[16];
    snprintf(path, sizeof path, "%s/lock", u->c.data_dir);
    u->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (u->lock_fd < 0)
        return err_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    if (lock_take(u, e))
        return -1;
    int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
    if (ftruncate(u->lock_fd, 0) || pwrite(u->lock_fd, text, (size_t)n, 0) != n)
        return err_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    return 0;
}

// One worker serves one model, and a tier's queue is one worker's: two models of a tier would take
// each other's jobs.
static int models_check(const config *c, err *e) {
    if (c->n_models == 0)
        return err_set(
            e, ERR_INVALID, "model",
            "no model is configured: add a [model NAME] section with path=FILE.gguf, or --model "
            "NAME=FILE.gguf");
    for (int i = 0; i < c->n_models; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(c->models[i].tier, c->models[j].tier))
                return err_set(e, ERR_INVALID, "model",
                               "models %s and %s are both of tier %s; give each its own tier",
                               c->models[j].name, c->models[i].name, c->models[i].tier);
    return 0;
}

static int run_ini_write(up *u, err *e) {
    char path[CONFIG_TEXT + 16];
    buf text = {0};
    snprintf(path, sizeof path, "%s/run.ini", u->c.data_dir);
    buf_puts(&text, "; Written by `tiergate up` at every start: the values in force. Edit your own "
                    "file, not this one.\n");
    config_dump(&u->c, &text);
    int rc = file_write_atomic(path, 0600, text.data, text.len, e);
    buf_release(&text);
    return rc;
}

static int directories_make(up *u, err *e) {
    char path[CONFIG_TEXT + 16];
    static const char *const names[] = {"logs", "secrets"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", u->c.data_dir, names[i]);
        if (file_mkdirs(path, 0700, e))
            return -1;
    }
    return 0;
}

static int start_one(up *u, child_kind kind, const char *name, const config_model *model, err *e) {
    child *k = child_add(u, kind, name, model);
    up_say(u, "starting %s", k->name);
    return child_start(u, k, e) || child_wait_ready(u, k, START_S, e) ? -1 : 0;
}

static int start_all(up *u, err *e) {
    int n_applied;
    if (directories_make(u, e) || servers_prepare(u, e) || run_ini_write(u, e))
        return -1;
    if (u->private_postgres && start_one(u, CHILD_POSTGRES, "postgres", NULL, e))
        return -1;
    if (u->private_redis && start_one(u, CHILD_REDIS, "redis", NULL, e))
        return -1;
    if (migrate_run(u->c.postgres_url, &n_applied, e) || keys_prepare(u, e))
        return -1;
    if (n_applied)
        up_say(u, "database: %d migration%s applied", n_applied, n_applied == 1 ? "" : "s");
    for (int i = 0; i < u->c.n_models; i++)
        if (start_one(u, CHILD_WORKER, "worker", &u->c.models[i], e))
            return -1;
    if (start_one(u, CHILD_GATEWAY, "gateway", NULL, e))
        return -1;
    return run_ini_write(u, e); // now with the ports that were chosen
}

static int signals_open(up *u, err *e) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    u->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return u->signal_fd < 0 ? err_set(e, ERR_IO, NULL, "signalfd: %s", strerror(errno)) : 0;
}

static int up_run(up *u, err *e) {
    ssize_t n = readlink("/proc/self/exe", u->self, sizeof u->self - 1);
    if (n < 0)
        return err_set(e, ERR_IO, NULL, "/proc/self/exe: %s", strerror(errno));
    if (models_check(&u->c, e) || signals_open(u, e) || lock_data(u, e))
        return -1;
    int rc = start_all(u, e) || ready_write(u, e);
    if (!rc) {
        ready_print(u);
        rc = children_supervise(u, e);
        up_say(u, "stopping");
    }
    children_stop(u);
    servers_release(u);
    if (u->ready_file)
        unlink(u->ready_file);
    if (!rc)
        up_say(u, "stopped");
    return rc ? -1 : 0;
}

int command_up(int argc, char **argv, err *e) {
    up u = {.pg_dir_fd = -1, .pg_socket_fd = -1, .signal_fd = -1, .lock_fd = -1};
    settings s = {0};
    option_list models = {0};
    const char *listen = NULL, *admin = NULL, *ops = NULL;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"listen", OPTION_TEXT, &listen, "HOST:PORT", "API; port 0 lets the kernel choose"},
        {"admin-listen", OPTION_TEXT, &admin, "HOST:PORT", "administration and console"},
        {"ops-listen", OPTION_TEXT, &ops, "HOST:PORT", "health and metrics"},
        {"model", OPTION_LIST, &models, "NAME=FILE.gguf",
         "serve a model (repeatable); or [model NAME] in the file"},
        {"ready-file", OPTION_TEXT, &u.ready_file, "FILE",
         "written when everything is up (JSON, mode 0600)"},
    };
    int shown =
        settings_parse(rows, sizeof rows / sizeof *rows, argc, argv,
                       "tiergate up [options]: everything on one machine, in the foreground", e);
    if (shown)
        return shown < 0 ? -1 : 0;
    if (listen)
        settings_set(&s, "gateway.listen", listen);
    if (admin)
        settings_set(&s, "gateway.admin_listen", admin);
    if (!ops && listen && !strcmp(listen + strlen(listen) - (strlen(listen) > 2 ? 2 : 0), ":0"))
        ops = "127.0.0.1:0"; // several installations on one machine do not meet
    if (ops)
        settings_set(&s, "gateway.ops_listen", ops);
    settings_set(&s, "worker.ops_listen", "127.0.0.1:0");
    for (int i = 0; i < models.n; i++)
        if (settings_set_model(&s, models.items[i], i, e))
            return -1;
    int rc = settings_load_up(&s, &u.c, e) || up_run(&u, e) ? -1 : 0;
    settings_release(&s);
    return rc;
}
