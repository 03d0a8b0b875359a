// hf_directory FILE.gguf DIRECTORY F32|F16|BF16: the model as a Hugging Face directory,
// dequantised; GGUF in place of a type: as DIRECTORY/float.gguf. For tests of the command line.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "tests/support/gguf_as_f32.h"
#include "tests/support/hf_writer.h"

static void write_gguf(const model *m, const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/float.gguf", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        fatal("cannot write %s", path);
    gguf_copy_as_f32(model_gguf(m), fd);
    close(fd);
}

int main(int argc, char **argv) {
    static const weight_type types[] = {WT_F32, WT_F16, WT_BF16};
    model *m = NULL;
    err e = {0};
    if (argc != 4)
        fatal("hf_directory FILE.gguf DIRECTORY F32|F16|BF16|GGUF");
    if (model_open(argv[1], NULL, &m, &e))
        fatal("%s", e.message);
    for (int i = 0; i < 3; i++)
        if (!strcmp(argv[3], weight_type_name(types[i])))
            hf_write_model(m, argv[2], types[i]);
    if (!strcmp(argv[3], "GGUF"))
        write_gguf(m, argv[2]);
    model_close(m);
    return 0;
}
