// Private servers for tests. Owns the children and their directory. A keeper process reads from a
// pipe of the test: when that ends, however the test died, it stops what still runs (also a server
// that was stopped) and removes the directory. PostgreSQL refuses root: as root it runs under the
// account postgres.
#include "tests/support/servers.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_MS 60000 // a loaded machine is slow

static char root_dir[64]; // holds everything; "" until needed
static pid_t root_owner, keeper;
static int keeper_fd = -1; // closed by the end of the test, of whatever kind
static test_server redis_server, postgres_server;

_Noreturn static void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void give_up(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "tests/support: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

static void pause_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

// ---- the directory

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)s, (void)kind, (void)where;
    return remove(path);
}

// What runs now; told to the keeper at each change.
typedef struct running {
    pid_t redis, postgres;
} running;

static void tell_keeper(void) {
    running now = {redis_server.pid, postgres_server.pid};
    if (keeper_fd >= 0 && write(keeper_fd, &now, sizeof now) != sizeof now)
        give_up("the keeper of the servers is gone");
}

static void end_process(pid_t pid, int signal) {
    if (pid <= 0 || kill(pid, signal))
        return;
    kill(pid, SIGCONT);
    for (int waited = 0; waited < 5000 && kill(pid, 0) == 0; waited += 10)
        pause_ms(10);
    kill(pid, SIGKILL);
}

// The keeper's life: listens until the test is gone, then tidies up.
_Noreturn static void keep(int fd) {
    running now = {0}, next;
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) // a runner waits for the end of the test's output
        dup2(null, i);
    while (read(fd, &next, sizeof next) == sizeof next)
        now = next;
    end_process(now.redis, SIGKILL);
    end_process(now.postgres, SIGQUIT); // immediate shutdown: takes its children along
    nftw(root_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    _exit(0);
}

static void start_keeper(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) || (keeper = fork()) < 0)
        give_up("cannot start a keeper: %s", strerror(errno));
    if (keeper == 0) {
        close(ends[1]);
        keep(ends[0]);
    }
    close(ends[0]);
    keeper_fd = ends[1];
}

static void stop_all(void) {
    if (getpid() != root_owner)
        return; // a child of the test that called exit()
    test_server_kill(&redis_server, SIGKILL);
    test_server_kill(&postgres_server, SIGQUIT);
    close(keeper_fd);
    waitpid(keeper, NULL, 0); // it removes the directory
}

const char *test_dir(void) {
    if (root_dir[0])
        return root_dir;
    snprintf(root_dir, sizeof root_dir, "/tmp/tiergate-test-XXXXXX");
    if (!mkdtemp(root_dir))
        give_up("cannot make %s: %s", root_dir, strerror(errno));
    root_owner = getpid();
    start_keeper();
    atexit(stop_all);
    return root_dir;
}

// ---- programs

static bool find_postgres(char *out, size_t n) {
    static const char base[] = "/usr/lib/postgresql";
    struct dirent **names = NULL;
    int found = scandir(base, &names, NULL, versionsort);
    bool has = false;
    for (int i = found - 1; i >= 0; i--) {
        if (!has)
            snprintf(out, n, "%s/%.200s/bin", base, names[i]->d_name);
        char initdb[600];
        snprintf(initdb, sizeof initdb, "%s/initdb", out);
        has = has || (names[i]->d_name[0] != '.' && access(initdb, X_OK) == 0);
        free(names[i]);
    }
    free(names);
    return has && (getuid() != 0 || getpwnam("postgres"));
}

bool test_has_postgres(void) {
    char bin[512];
    return find_postgres(bin, sizeof bin);
}

bool test_has_redis(void) { return access("/usr/bin/redis-server", X_OK) == 0; }

static void become_postgres(void) {
    const struct passwd *account = getuid() == 0 ? getpwnam("postgres") : NULL;
    if (!account)
        return;
    if (setgroups(0, NULL) || setgid(account->pw_gid) || setuid(account->pw_uid))
        _exit(126);
}

// Starts argv with its output in a log file.
static pid_t start(char *const argv[], const char *log, bool as_postgres) {
    pid_t pid = fork();
    if (pid < 0)
        give_up("cannot fork: %s", strerror(errno));
    if (pid > 0)
        return pid;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    setsid();
    if (as_postgres)
        become_postgres();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(argv[0], argv);
    _exit(127);
}

static void show_log(const char *log) {
    char line[512];
    FILE *f = fopen(log, "r");
    while (f && fgets(line, sizeof line, f))
        fputs(line, stderr);
    if (f)
        fclose(f);
}

// ---- waiting until a server answers

static int connect_unix(const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

// Sends `question` and expects an answer that starts with `answer`.
static bool answers(const char *path, const void *question, size_t n, char answer) {
    int fd = connect_unix(path);
    char got = 0;
    struct timeval wait = {.tv_sec = 1};
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) == 0 &&
              send(fd, question, n, MSG_NOSIGNAL) == (ssize_t)n && read(fd, &got, 1) == 1 &&
              got == answer;
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool redis_is_ready(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/redis.sock", root_dir);
    return answers(path, "PING\r\n", 6, '+');
}

// A start-up message for user and database postgres; 'R' (authentication) says that sessions are
// accepted.
static bool postgres_is_ready(void) {
    static const char hello[] = "\0\0\0\x29\0\3\0\0user\0postgres\0database\0postgres\0";
    char path[128];
    snprintf(path, sizeof path, "%s/.s.PGSQL.5432", root_dir);
    return answers(path, hello, sizeof hello, 'R');
}

static void wait_until(bool (*is_ready)(void), const test_server *s, const char *log) {
    for (int waited = 0; waited < START_MS; waited += 10) {
        if (is_ready())
            return;
        if (waitpid(s->pid, NULL, WNOHANG) == s->pid)
            break;
        pause_ms(10);
    }
    show_log(log);
    give_up("a server did not start");
}

// ---- Redis

static void start_redis(void) {
    char socket_path[128], log[128];
    snprintf(socket_path, sizeof socket_path, "%s/redis.sock", root_dir);
    snprintf(log, sizeof log, "%s/redis.log", root_dir);
    char *argv[] = {"/usr/bin/redis-server",
                    "--port",
                    "0",
                    "--unixsocket",
                    socket_path,
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--maxmemory-policy",
                    "noeviction",
                    "--dir",
                    root_dir,
                    NULL};
    redis_server.pid = start(argv, log, false);
    tell_keeper();
    wait_until(redis_is_ready, &redis_server, log);
}

const test_server *test_redis(void) {
    if (!redis_server.pid) {
        snprintf(redis_server.dir, sizeof redis_server.dir, "%s", test_dir());
        snprintf(redis_server.address, sizeof redis_server.address, "unix:%s/redis.sock", root_dir);
        start_redis();
    }
    return &redis_server;
}

// ---- PostgreSQL

static void run_initdb(const char *bin, const char *data, const char *log) {
    char program[600];
    snprintf(program, sizeof program, "%s/initdb", bin);
    char *argv[] = {program, "--no-sync", "-A",         "trust", "-U",         "postgres",
                    "-E",    "UTF8",      "--locale=C", "-D",    (char *)data, NULL};
    int status = 0;
    pid_t pid = start(argv, log, true);
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        show_log(log);
        give_up("initdb failed");
    }
}

static void start_postgres(void) {
    char bin[512], program[600], data[128], log[128];
    if (!find_postgres(bin, sizeof bin))
        give_up("PostgreSQL is not installed");
    snprintf(program, sizeof program, "%s/postgres", bin);
    snprintf(data, sizeof data, "%s/pg", root_dir);
    snprintf(log, sizeof log, "%s/postgres.log", root_dir);
    if (access(data, F_OK))
        run_initdb(bin, data, log);
    char *argv[] = {program,
                    "-D",
                    data,
                    "-k",
                    root_dir,
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "fsync=off",
                    "-c",
                    "full_page_writes=off",
                    "-c",
                    "shared_buffers=16MB",
                    "-c",
                    "max_connections=60",
                    NULL};
    postgres_server.pid = start(argv, log, true);
    tell_keeper();
    wait_until(postgres_is_ready, &postgres_server, log);
}

const test_server *test_postgres(void) {
    if (!postgres_server.pid) {
        test_dir();
        const struct passwd *account = getuid() == 0 ? getpwnam("postgres") : NULL;
        if (account && chown(root_dir, account->pw_uid, account->pw_gid))
            give_up("cannot give %s to postgres", root_dir);
        snprintf(postgres_server.dir, sizeof postgres_server.dir, "%s", root_dir);
        snprintf(postgres_server.address, sizeof postgres_server.address,
                 "postgresql:///postgres?host=%s&user=postgres", root_dir);
        start_postgres();
    }
    return &postgres_server;
}

// ---- both

void test_server_kill(const test_server *s, int signal) {
    test_server *mine = s == &redis_server ? &redis_server : &postgres_server;
    if (mine->pid <= 0)
        return;
    kill(mine->pid, signal);
    if (signal == SIGSTOP || signal == SIGCONT)
        return;
    kill(mine->pid, SIGCONT);
    waitpid(mine->pid, NULL, 0);
    mine->pid = -1; // known, not running
    tell_keeper();
}

void test_server_start(const test_server *s) {
    if (s->pid > 0)
        give_up("that server is running");
    if (s == &redis_server)
        start_redis();
    else
        start_postgres();
}
