// The x-ratelimit headers of an inference response. Pure functions of what the hold said.
#ifndef SERVER_OPENAI_RATES_H
#define SERVER_OPENAI_RATES_H
#include <stddef.h>
#include "router/rate.h"
#include "server/http.h"

// "1s", "6m0s", "23h4m0s": rounded up to whole seconds.
void rates_format_reset(int64_t ms, char *out, size_t n);
// Of two requests for one answer, the tighter one.
rates rates_tighter(rates a, rates b);
// x-ratelimit-{limit,remaining,reset}-{requests,tokens}; none where nothing limits.
void rates_set_headers(exchange *x, const rates *r);

#endif
