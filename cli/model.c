// `tiergate model check FILE|DIRECTORY`: is this a model that a worker would load? Reads no
// weights.
#include <stdio.h>
#include <string.h>
#include "cli/commands.h"
#include "cli/options.h"
#include "model/model.h"

int command_model(int argc, char **argv, err *e) {
    const char *words[2];
    int n_words;
    bool help;
    if (options_parse(NULL, 0, argc, argv, words, 2, &n_words, &help, e))
        return -1;
    if (help) {
        puts("tiergate model check FILE.gguf|DIRECTORY: a summary and exit status 0, or one line "
             "that says "
             "what is wrong");
        return 0;
    }
    if (n_words != 2 || strcmp(words[0], "check"))
        return err_set(e, ERR_INVALID, "action", "say `tiergate model check FILE.gguf|DIRECTORY`");
    buf summary = {0};
    int rc = model_check(words[1], &summary, e);
    if (!rc)
        fputs(summary.data, stdout);
    else
        e->code = ERR_FORMAT; // exit status 1 whatever is wrong with the file
    buf_release(&summary);
    return rc;
}
