// The configuration file on arbitrary bytes: it loads, or is refused with a message; and what was
// loaded is written as a file that loads to the same.
#include "base/config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int load(config *c, const void *p, size_t n, err *e) {
    char path[64];
    int fd = memfd_create("config", MFD_CLOEXEC);
    if (fd < 0 || write(fd, p, n) != (ssize_t)n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rc = config_load(c, path, NULL, 0, e);
    close(fd);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static config first, second;
    buf a = {0}, b = {0};
    err e = {0};
    if (load(&first, data, n, &e)) {
        if (e.code == ERR_NONE || !e.message[0])
            abort();
        return 0;
    }
    config_dump(&first, &a);
    if (load(&second, a.data, a.len, &e)) {
        fprintf(stderr, "%s\n%s\n", e.message, a.data);
        abort();
    }
    config_dump(&second, &b);
    if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
        abort();
    buf_release(&a);
    buf_release(&b);
    return 0;
}
