// Metrics of the API. Labels are routes and statuses only.
#ifndef SERVER_OPENAI_METER_H
#define SERVER_OPENAI_METER_H
#include <stdint.h>
#include "server/routes.h"

void meter_register(void); // before the first request
// r NULL: no route matched.
void meter_ended(const route *r, int status, int64_t total_us);
void meter_tokens(int prompt, int completion);
void meter_first_token(const route *r, int64_t us);
void meter_stream(int by); // +1 begun, -1 ended

#endif
