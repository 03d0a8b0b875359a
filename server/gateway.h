// The gateway role: reads secrets, opens models, auth and router, serves the API, administration
// and operations listeners.
#ifndef SERVER_GATEWAY_H
#define SERVER_GATEWAY_H
#include "base/config.h"
#include "base/err.h"

// Runs until SIGTERM or SIGINT (drain, then end; SIGINT without drain_grace_ms) or a second one
// (end now). SIGHUP reloads configuration and certificate. ready_fd >= 0: one line of JSON
// {"base_url","admin_url","ops_url","ca_file","models":[…]} is written there once it serves.
// config_path and sets: for reloads.
int gateway_run(config *c, const char *config_path, const char *const *sets, int n_sets,
                int ready_fd, err *e);

#endif
