// Starting programs. Owns nothing after the start: the caller waits for the pid.
#include "cli/process.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct account {
    bool change;
    uid_t uid;
    gid_t gid;
} account;

static int account_find(const char *user, account *out, err *e) {
    *out = (account){0};
    if (!user)
        return 0;
    const struct passwd *p = getpwnam(user);
    if (!p)
        return err_set(e, ERR_IO, NULL, "there is no account '%s' on this machine", user);
    *out = (account){.change = p->pw_uid != geteuid(), .uid = p->pw_uid, .gid = p->pw_gid};
    return 0;
}

static bool is_passed(const process_spec *s, int fd) {
    for (int i = 0; i < s->n_fds; i++)
        if (s->fds[i] == fd)
            return true;
    return false;
}

// In the child: only async-signal-safe calls from here to exec. -> errno of what failed.
static int child_prepare(const process_spec *s, const account *a, int log_fd, pid_t parent,
                         int status_fd) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (setpgid(0, 0))
        return errno;
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0)
        return errno;
    if (log_fd >= 0 && (dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0))
        return errno;
    for (int fd = 3; fd < 1024; fd++)
        if (fd != status_fd && !is_passed(s, fd))
            close(fd);
    for (int i = 0; i < s->n_fds; i++)
        if (fcntl(s->fds[i], F_SETFD, 0))
            return errno;
    if (a->change && (setgroups(0, NULL) || setgid(a->gid) || setuid(a->uid)))
        return errno;
    if (prctl(PR_SET_PDEATHSIG, s->end_signal ? s->end_signal : SIGTERM))
        return errno;
    return getppid() == parent ? 0 : ESRCH; // the parent died before the request took hold
}

static void child_run(const process_spec *s, const account *a, int log_fd, pid_t parent,
                      int status_fd) {
    int failure = child_prepare(s, a, log_fd, parent, status_fd);
    if (!failure) {
        execvp(s->argv[0], (char *const *)s->argv);
        failure = errno;
    }
    ssize_t ignored = write(status_fd, &failure, sizeof failure);
    (void)ignored;
    _exit(127);
}

int process_start(const process_spec *s, pid_t *pid, err *e) {
    account a;
    int log_fd = -1, status[2], rc = -1, failure = 0;
    if (account_find(s->user, &a, e))
        return -1;
    if (s->log_path &&
        (log_fd = open(s->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0)
        return err_set(e, ERR_IO, NULL, "%s: %s", s->log_path, strerror(errno));
    if (pipe2(status, O_CLOEXEC)) {
        err_set(e, ERR_IO, NULL, "no pipe for %s: %s", s->name, strerror(errno));
        goto done;
    }
    pid_t parent = getpid();
    *pid = fork();
    if (*pid == 0)
        child_run(s, &a, log_fd, parent, status[1]);
    close(status[1]);
    if (*pid < 0) {
        err_set(e, ERR_IO, NULL, "%s cannot be started: %s", s->name, strerror(errno));
    } else if (read(status[0], &failure, sizeof failure) == sizeof failure) {
        waitpid(*pid, NULL, 0);
        err_set(e, ERR_IO, NULL, "%s cannot be started: %s: %s", s->name, s->argv[0],
                strerror(failure));
    } else {
        rc = 0;
    }
    close(status[0]);
done:
    if (log_fd >= 0)
        close(log_fd);
    return rc;
}

int process_run(const process_spec *s, err *e) {
    pid_t pid;
    int status;
    if (process_start(s, &pid, e))
        return -1;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return err_set(e, ERR_IO, NULL, "%s: %s", s->name, strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    char how[64];
    buf tail = {0};
    process_describe(status, how, sizeof how);
    if (s->log_path)
        process_log_tail(s->log_path, 200, &tail);
    err_set(e, ERR_IO, NULL, "%s %s: %s", s->name, how, tail.data ? tail.data : "");
    buf_release(&tail);
    return -1;
}

void process_describe(int wait_status, char *out, size_t n) {
    if (WIFSIGNALED(wait_status))
        snprintf(out, n, "was killed by signal %d (%s)", WTERMSIG(wait_status),
                 strsignal(WTERMSIG(wait_status)));
    else
        snprintf(out, n, "exited with status %d", WEXITSTATUS(wait_status));
}

void process_log_tail(const char *path, size_t max, buf *out) {
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    fseek(f, 0, SEEK_END);
    long size = ftell(f), from = size > (long)max ? size - (long)max : 0;
    fseek(f, from, SEEK_SET);
    char chunk[1024];
    size_t got;
    while ((got = fread(chunk, 1, sizeof chunk, f)) > 0)
        buf_put(out, chunk, got);
    fclose(f);
    if (from > 0 && out->data) { // begin at a line
        const char *line = memchr(out->data, '\n', out->len);
        if (line && (size_t)(line + 1 - out->data) < out->len)
            buf_consume(out, (size_t)(line + 1 - out->data));
    }
}
