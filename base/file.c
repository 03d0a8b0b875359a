// Whole files: read with a limit, replace atomically, make directories. Holds descriptors only
// inside a call; any thread. Does not follow what changes on disk later, and locks nothing.
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int io_error(err *e, const char *what, const char *path) {
    return err_set(e, ERR_IO, NULL, "cannot %s %s: %s", what, path, strerror(errno));
}

int file_read(const char *path, size_t limit, buf *out, err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return io_error(e, "open", path);
    int rc = -1;
    size_t before = out->len;
    for (;;) {
        char piece[16384];
        ssize_t n = read(fd, piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            io_error(e, "read", path);
            break;
        }
        if (out->len - before + (size_t)n > limit) {
            err_set(e, ERR_IO, NULL, "%s is larger than %zu bytes", path, limit);
            break;
        }
        buf_put(out, piece, (size_t)n);
        if (n == 0) {
            rc = 0;
            break;
        }
    }
    close(fd);
    return rc;
}

static int write_all(int fd, const char *p, size_t n) {
    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

// Makes the rename itself durable: fsync of the directory that holds path.
static int sync_directory(const char *path) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(dir, sizeof dir, ".");
    else
        snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int rc = fsync(fd);
    close(fd);
    return rc;
}

int file_write_atomic(const char *path, mode_t mode, const void *p, size_t n, err *e) {
    char temporary[PATH_MAX];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s.XXXXXX", path) >= sizeof temporary)
        return err_set(e, ERR_IO, NULL, "path is too long: %.200s", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return io_error(e, "create a temporary file beside", path);
    int rc = fchmod(fd, mode) || write_all(fd, p, n) || fsync(fd) ? -1 : 0;
    if (rc)
        io_error(e, "write", path);
    if (close(fd) && !rc)
        rc = io_error(e, "write", path);
    if (!rc && rename(temporary, path))
        rc = io_error(e, "replace", path);
    if (rc)
        unlink(temporary);
    else if (sync_directory(path))
        rc = io_error(e, "sync the directory of", path);
    return rc;
}

static int make_one(const char *path, mode_t mode, err *e) {
    struct stat s;
    if (mkdir(path, mode) == 0)
        return 0;
    if (errno != EEXIST)
        return io_error(e, "make directory", path);
    if (stat(path, &s) == 0 && S_ISDIR(s.st_mode))
        return 0;
    return err_set(e, ERR_IO, NULL, "%s is in the way: not a directory", path);
}

int file_mkdirs(const char *path, mode_t mode, err *e) {
    char part[PATH_MAX];
    if ((size_t)snprintf(part, sizeof part, "%s", path) >= sizeof part)
        return err_set(e, ERR_IO, NULL, "path is too long: %.200s", path);
    for (char *p = part + 1; part[0] && *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (make_one(part, mode, e))
            return -1;
        *p = '/';
    }
    return make_one(part, mode, e);
}

bool file_exists(const char *path) { return access(path, F_OK) == 0; }
