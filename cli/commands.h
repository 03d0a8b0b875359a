// The commands of the binary: each gets the words after its name and returns 0, or -1 with e
// (ERR_INVALID: exit status 2).
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H
#include "base/err.h"

int command_up(int argc, char **argv, err *e);
int command_gateway(int argc, char **argv, err *e);
int command_worker(int argc, char **argv, err *e);
int command_migrate(int argc, char **argv, err *e);
int command_check_config(int argc, char **argv, err *e);
int command_key(int argc, char **argv, err *e);
int command_usage(int argc, char **argv, err *e);
int command_why(int argc, char **argv, err *e);
int command_quota(int argc, char **argv, err *e);
int command_adapter(int argc, char **argv, err *e);
int command_model(int argc, char **argv, err *e);
int command_fit(int argc, char **argv, err *e);

#endif
