// Child processes of `tiergate up`: started in their own process group, ended with their parent,
// output to a log file.
#ifndef CLI_PROCESS_H
#define CLI_PROCESS_H
#include <stdbool.h>
#include <sys/types.h>
#include "base/buf.h"
#include "base/err.h"

#define PROCESS_FDS 4

typedef struct process_spec {
    const char *name;
    const char *const *argv; // argv[0] is looked up in PATH when it has no slash; NULL-terminated
    const char *log_path;    // stdout and stderr are appended; NULL: inherited
    const char *user;        // account to run as; NULL: ours
    int end_signal;          // sent by the kernel when we die
    int fds[PROCESS_FDS];    // the only descriptors passed on besides 0..2, with their numbers kept
    int n_fds;
} process_spec;

// Returns once the program was executed. ERR_IO says why it could not be.
int process_start(const process_spec *s, pid_t *pid, err *e);
// Runs to the end (a tool such as initdb); a failure is ERR_IO with the end of its output.
int process_run(const process_spec *s, err *e);
// "exited with status 1", "was killed by signal 9 (Killed)"
void process_describe(int wait_status, char *out, size_t n);
// Appends the last lines of a log file, at most max bytes.
void process_log_tail(const char *path, size_t max, buf *out);

#endif
