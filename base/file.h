// Whole files, safely.
#ifndef BASE_FILE_H
#define BASE_FILE_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include "base/buf.h"
#include "base/err.h"

int file_read(const char *path, size_t limit, buf *out, err *e); // appends; ERR_IO names the path
// Writes to a temporary name beside it, fsyncs, renames: a reader sees the old bytes or the new.
int file_write_atomic(const char *path, mode_t mode, const void *p, size_t n, err *e);
int file_mkdirs(const char *path, mode_t mode, err *e); // like mkdir -p
bool file_exists(const char *path);

#endif
