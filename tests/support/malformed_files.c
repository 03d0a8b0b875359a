// Writes every malformed GGUF of the catalogue to DIRECTORY/NAME.gguf and tells each one's name and
// what the error about it must say, separated by a tab, a line each. For tests of the command line.
#include "tests/support/gguf_malformed.h"
#include "base/file.h"
#include <stdio.h>

int main(int argc, char **argv) {
    if (argc != 2)
        fatal("malformed_files DIRECTORY");
    for (size_t i = 0; i < malformed_count(); i++) {
        const malformed *m = malformed_at(i);
        buf bytes = {0};
        char path[4096];
        err e = {0};
        malformed_write(m, &bytes);
        snprintf(path, sizeof path, "%s/%s.gguf", argv[1], m->name);
        if (file_write_atomic(path, 0600, bytes.data, bytes.len, &e))
            fatal("%s", e.message);
        buf_release(&bytes);
        printf("%s\t%s\n", m->name, m->expect);
    }
    return 0;
}
