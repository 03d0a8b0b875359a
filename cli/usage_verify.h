// `tiergate usage verify`.
#ifndef CLI_USAGE_VERIFY_H
#define CLI_USAGE_VERIFY_H
#include <stdbool.h>
#include "base/config.h"
#include "base/err.h"

// Prints what it found. ERR_FORMAT: there are differences.
int usage_verify(const config *c, bool json, err *e);

#endif
