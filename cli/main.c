// The binary: one table of commands. Exit status 0: done; 1: failed; 2: the command line was wrong.
#include <stdio.h>
#include <string.h>
#include "cli/commands.h"

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv, err *e);
    const char *summary;
} command;

static const command commands[] = {
    {"up", command_up,
     "everything on this machine: PostgreSQL, Redis, gateway, one worker per model"},
    {"gateway", command_gateway, "the HTTPS front end"},
    {"worker", command_worker, "one model replica"},
    {"migrate", command_migrate, "bring the database to this version"},
    {"check-config", command_check_config, "read a configuration and say what is wrong with it"},
    {"key", command_key, "API keys: create, list, revoke"},
    {"quota", command_quota, "limits: set, show"},
    {"usage", command_usage,
     "what was used: by tenant, model and day, or request by request; verify: does it add up?"},
    {"why", command_why, "the life of one request, from its acceptance to its row"},
    {"adapter", command_adapter, "a tenant's own adapters: import, ls, rm"},
    {"model", command_model, "models: check, add, ls, verify, rm"},
    {"fit", command_fit, "will a model fit this memory or that GPU, and with how many requests?"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help(FILE *to) {
    fprintf(to, "tiergate: private, multi-tenant inference for code assistants\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  tiergate %-14s %s\n", commands[i].name, commands[i].summary);
    fprintf(to, "\n`tiergate COMMAND --help` tells the options. Start with `tiergate up`.\n");
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        help(stdout);
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i].name, name)) {
            err e = {0};
            if (!commands[i].run(argc - 2, argv + 2, &e))
                return 0;
            if (e.code != ERR_CANCELLED) // the user's own Ctrl-C needs no explanation
                fprintf(stderr, "tiergate %s: %s\n", name, e.message);
            return e.code == ERR_INVALID ? 2 : 1;
        }
    if (*name)
        fprintf(stderr, "tiergate: there is no command '%s'\n\n", name);
    help(stderr);
    return 2;
}
