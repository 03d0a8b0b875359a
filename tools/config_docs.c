// Writes what the configuration table says: `config_docs sample` or `config_docs markdown`, to
// standard output. Used by `make docs-config`; a unit test compares the written files with the
// table.
#include "base/config.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    buf out = {0};
    if (argc == 2 && strcmp(argv[1], "sample") == 0)
        config_sample(&out);
    else if (argc == 2 && strcmp(argv[1], "markdown") == 0)
        config_markdown(&out);
    else
        return fprintf(stderr, "usage: config_docs sample|markdown\n"), 2;
    int rc = fwrite(out.data, 1, out.len, stdout) == out.len && fflush(stdout) == 0 ? 0 : 1;
    buf_release(&out);
    return rc;
}
