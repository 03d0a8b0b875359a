// Parts of server/openai_request.c: readers of the members that are no plain values.
#ifndef SERVER_OPENAI_REQUEST_PARTS_H
#define SERVER_OPENAI_REQUEST_PARTS_H
#include "server/openai_request.h"

// A record begins with the pointer to its request.
static inline openai_request *request_of(void *record) { return *(openai_request **)record; }

field_read request_read_messages, request_read_prompt, request_read_tokens, request_read_stop,
    request_read_logit_bias, request_read_seed, request_read_response_format,
    request_read_modalities, request_read_service_tier, request_read_metadata,
    request_read_stream_options;

#endif
