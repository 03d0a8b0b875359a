// Supervision: what is started in which order, who is restarted with back-off, how it all stops.
// States of a child: not running (waits for restart_ms), running, ready. Only the main thread comes
// here.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "cli/up.h"

enum {
    POLL_MS = 20,
    BACKOFF_MS = 250,
    BACKOFF_MOST_MS = 10000,
    STEADY_MS = 30000,
    STOP_MS = 40000
};

void up_say(up *u, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (u->progress_open)
        fputc('\n', stdout);
    u->progress_open = false;
    fputs("tiergate: ", stdout);
    vprintf(format, args);
    fputc('\n', stdout);
    fflush(stdout);
    va_end(args);
}

child *child_add(up *u, child_kind kind, const char *name, const config_model *model) {
    child *k = &u->children[u->n_children++];
    char full[sizeof k->name], log_path[sizeof k->log_path];
    snprintf(full, sizeof full, "%s%s%s", name, model ? "-" : "", model ? model->name : "");
    snprintf(log_path, sizeof log_path, "%s/logs/%s.log", u->c.data_dir, full);
    *k = (child){.kind = kind, .model = model, .ready_fd = -1};
    memcpy(k->name, full, sizeof full);
    memcpy(k->log_path, log_path, sizeof log_path);
    return k;
}

// A role of this binary, which says on a pipe that it is ready.
static int role_start(up *u, child *k, err *e) {
    int pipe_fds[2];
    char fd_text[16], file[CONFIG_TEXT + 16];
    if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK))
        return err_set(e, ERR_IO, NULL, "no pipe for %s: %s", k->name, strerror(errno));
    snprintf(fd_text, sizeof fd_text, "%d", pipe_fds[1]);
    snprintf(file, sizeof file, "%s/run.ini", u->c.data_dir);
    const char *argv[12] = {u->self,      k->kind == CHILD_GATEWAY ? "gateway" : "worker",
                            "--config",   file,
                            "--ready-fd", fd_text};
    int n = 6;
    if (k->model) {
        argv[n++] = "--model";
        argv[n++] = k->model->name;
    }
    process_spec s = {.name = k->name,
                      .argv = argv,
                      .log_path = k->log_path,
                      .end_signal = SIGTERM,
                      .fds = {pipe_fds[1], u->lock_fd},
                      .n_fds = 2};
    int rc = process_start(&s, &k->pid, e);
    close(pipe_fds[1]);
    if (k->ready_fd >= 0)
        close(k->ready_fd);
    k->ready_fd = pipe_fds[0];
    buf_clear(&k->line);
    return rc;
}

int child_start(up *u, child *k, err *e) {
    static int (*const start[])(up *, child *, err *) = {[CHILD_POSTGRES] = postgres_start,
                                                         [CHILD_REDIS] = redis_start,
                                                         [CHILD_WORKER] = role_start,
                                                         [CHILD_GATEWAY] = role_start};
    k->ready = false;
    k->started_ms = clock_mono_ms();
    if (!start[k->kind](u, k, e))
        return 0;
    k->pid = 0;
    return -1;
}

// A whole ready line: keeps what it says.
static bool role_is_ready(child *k) {
    char chunk[2048];
    ssize_t got;
    while (k->ready_fd >= 0 && (got = read(k->ready_fd, chunk, sizeof chunk)) > 0)
        buf_put(&k->line, chunk, (size_t)got);
    if (!k->line.len || !memchr(k->line.data, '\n', k->line.len))
        return false;
    json_t *info = json_loadb(k->line.data, k->line.len, JSON_DISABLE_EOF_CHECK, NULL);
    if (!info)
        return false;
    json_decref(k->info);
    k->info = info;
    return true;
}

// Once started on port 0, a role keeps the port that it got: its address survives a restart.
static void keep_address(up *u, const child *k) {
    static const struct {
        const char *key;
        size_t at;
    } kept[] = {{"base_url", offsetof(config, listen)},
                {"admin_url", offsetof(config, admin_listen)},
                {"ops_url", offsetof(config, ops_listen)}};
    for (size_t i = 0; k->kind == CHILD_GATEWAY && i < sizeof kept / sizeof *kept; i++) {
        const char *url = json_string_value(json_object_get(k->info, kept[i].key));
        const char *colon = url ? strrchr(url, ':') : NULL;
        if (colon)
            ((config_listen *)((char *)&u->c + kept[i].at))->port =
                (uint16_t)strtoul(colon + 1, NULL, 10);
    }
}

static bool child_is_ready(up *u, child *k) {
    bool ready = k->kind == CHILD_POSTGRES ? postgres_is_ready(u)
                 : k->kind == CHILD_REDIS  ? redis_is_ready(u)
                                           : role_is_ready(k);
    if (ready) {
        k->ready = k->was_ready = true;
        keep_address(u, k);
    }
    return ready;
}

// The signal that came, 0 when none did within ms.
static int signal_wait(const up *u, int ms) {
    struct signalfd_siginfo info;
    struct pollfd p = {.fd = u->signal_fd, .events = POLLIN};
    if (poll(&p, 1, ms) <= 0 || read(u->signal_fd, &info, sizeof info) != sizeof info)
        return 0;
    return (int)info.ssi_signo;
}

static bool is_end(int signal) { return signal == SIGINT || signal == SIGTERM; }

bool signal_came(up *u, int ms) { return is_end(signal_wait(u, ms)); }

// A child ended before it was ready: the end of its log for people, the last line of it as the
// reason.
static void describe_end(up *u, const child *k, int status, err *e) {
    char how[64];
    buf tail = {0};
    process_describe(status, how, sizeof how);
    process_log_tail(k->log_path, 800, &tail);
    while (tail.len && tail.data[tail.len - 1] == '\n')
        buf_cut(&tail, tail.len - 1);
    const char *text = tail.data ? tail.data : "(empty)", *last = strrchr(text, '\n');
    up_say(u, "the end of %s:\n%s", k->log_path, text);
    err_set(e, ERR_IO, NULL, "%s %s: %s", k->name, how, last ? last + 1 : text);
    buf_release(&tail);
}

// Shows on a terminal that we wait, once a second, in place.
static void show_wait(up *u, const child *k, int64_t waited_ms) {
    if (waited_ms < 1000 || waited_ms % 1000 >= POLL_MS || !isatty(STDOUT_FILENO))
        return;
    printf("\rtiergate: %s: starting (%d s) ", k->name, (int)(waited_ms / 1000));
    fflush(stdout);
    u->progress_open = true;
}

int child_wait_ready(up *u, child *k, int timeout_s, err *e) {
    int64_t begun = clock_mono_ms();
    for (;;) {
        int status;
        if (child_is_ready(u, k))
            return 0;
        if (waitpid(k->pid, &status, WNOHANG) == k->pid) {
            k->pid = 0;
            describe_end(u, k, status, e);
            return -1;
        }
        if (signal_came(u, POLL_MS))
            return err_set(e, ERR_CANCELLED, NULL, "stopped while %s was starting", k->name);
        int64_t waited = clock_mono_ms() - begun;
        show_wait(u, k, waited);
        if (waited > timeout_s * 1000)
            return err_set(e, ERR_IO, NULL, "%s is not ready after %d s; see %s", k->name,
                           timeout_s, k->log_path);
    }
}

// ---- running

static void child_ended(up *u, child *k, int status) {
    char how[64];
    int64_t now = clock_mono_ms();
    process_describe(status, how, sizeof how);
    if (now - k->started_ms > STEADY_MS)
        k->failures = 0;
    int64_t wait = (int64_t)BACKOFF_MS << (k->failures < 6 ? k->failures : 6);
    k->failures++;
    k->restart_ms = now + (wait < BACKOFF_MOST_MS ? wait : BACKOFF_MOST_MS);
    k->pid = 0;
    k->ready = false;
    up_say(u, "%s %s; starting it again in %d ms (log: %s)", k->name, how,
           (int)(k->restart_ms - now), k->log_path);
}

static void reap(up *u) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < u->n_children; i++)
            if (u->children[i].pid == pid)
                child_ended(u, &u->children[i], status);
}

static void restart_due(up *u) {
    for (int i = 0; i < u->n_children; i++) {
        child *k = &u->children[i];
        err e = {0};
        if (!k->pid && clock_mono_ms() >= k->restart_ms && child_start(u, k, &e)) {
            up_say(u, "%s", e.message);
            k->failures++;
            k->restart_ms = clock_mono_ms() + BACKOFF_MOST_MS;
        }
    }
}

// Children that became ready since: the ready file tells their new pids.
static int note_ready(up *u, err *e) {
    bool any = false;
    for (int i = 0; i < u->n_children; i++) {
        child *k = &u->children[i];
        if (k->pid && !k->ready && child_is_ready(u, k)) {
            up_say(u, "%s is ready again", k->name);
            any = true;
        }
    }
    return any ? ready_write(u, e) : 0;
}

static void pass_on(const up *u, int signal) {
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == CHILD_GATEWAY && u->children[i].pid)
            kill(u->children[i].pid, signal);
}

int children_supervise(up *u, err *e) {
    for (;;) {
        int signal = signal_wait(u, 100);
        if (is_end(signal))
            return 0;
        if (signal == SIGHUP)
            pass_on(u, SIGHUP);
        reap(u);
        restart_due(u);
        if (note_ready(u, e))
            return -1;
    }
}

// ---- stopping: gateway, then workers, then what they need

// Waits for k to end. Another SIGINT or SIGTERM, or too long a time, cuts it short, and the roles
// after it, which lose nothing by it.
static void stop_one(up *u, child *k, int64_t begun) {
    int cut = k->kind == CHILD_POSTGRES ? SIGQUIT : SIGKILL; // SIGQUIT: a stop that is crash-safe
    bool is_role = k->kind == CHILD_GATEWAY || k->kind == CHILD_WORKER, told = false;
    while (waitpid(k->pid, NULL, WNOHANG) != k->pid) {
        bool came = signal_came(u, POLL_MS);
        int64_t waited = clock_mono_ms() - begun;
        u->hurry = u->hurry || came;
        if (came || waited > STOP_MS || (u->hurry && is_role))
            kill(k->pid, cut);
        if (waited > 1000 && !told)
            up_say(u, "%s finishes what is open; Ctrl-C again ends it at once", k->name);
        told = told || waited > 1000;
    }
    k->pid = 0;
}

static void stop_kind(up *u, child_kind kind, int signal) {
    int64_t begun = clock_mono_ms();
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == kind && u->children[i].pid)
            kill(u->children[i].pid, signal);
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == kind && u->children[i].pid)
            stop_one(u, &u->children[i], begun);
}

void children_stop(up *u) {
    stop_kind(u, CHILD_GATEWAY, SIGINT); // nobody balances: no grace
    stop_kind(u, CHILD_WORKER, SIGTERM);
    stop_kind(u, CHILD_REDIS, SIGTERM);
    stop_kind(u, CHILD_POSTGRES, SIGINT);
    for (int i = 0; i < u->n_children; i++) {
        child *k = &u->children[i];
        if (k->ready_fd >= 0)
            close(k->ready_fd);
        buf_release(&k->line);
        json_decref(k->info);
    }
}
