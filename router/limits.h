// Quotas as configured: a snapshot of the table `limits`, kept true by NOTIFY. Which are used up is
// router/quota.lua's business. Any thread. Internal to router/.
#ifndef ROUTER_LIMITS_H
#define ROUTER_LIMITS_H
#include "base/err.h"
#include "router/quota.h"
#include "router/usage.h"

typedef struct limits limits;

int limits_open(const char *postgres_url, limits **out, err *e); // ERR_DEPENDENCY at first read
void limits_close(limits *l);                                    // NULL: nothing
// Sets m->scopes to the letters of the scopes of this request that have a row, and a row of out for
// each. A row whose last limit was taken away counts on, so that the next limit finds true sums.
void limits_apply(const limits *l, usage_meta *m, quota_limits *out);
// The limits as of now of the scopes that m->scopes names.
void limits_refresh(const limits *l, const usage_meta *m, quota_limits *out);

#endif
