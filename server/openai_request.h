// What a client asks for, read and checked from a JSON body, before any model is looked at. Texts
// are borrowed from the JSON tree, which the request owns.
#ifndef SERVER_OPENAI_REQUEST_H
#define SERVER_OPENAI_REQUEST_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>
#include "base/arena.h"
#include "base/err.h"
#include "model/sampling.h"
#include "model/template.h"
#include "router/job.h"
#include "server/openai_field.h"
#include "server/openai_json.h"

typedef enum openai_kind {
    OPENAI_CHAT,
    OPENAI_COMPLETION,
    OPENAI_TOKENIZE,
    OPENAI_DETOKENIZE
} openai_kind;

struct openai_limits { // of the configuration, as of the request's start
    size_t body_bytes;
    int json_depth, max_messages, max_choices; // max_choices <= JOB_CHOICES
};

typedef struct openai_prompt { // text or token ids
    field_text text;
    const int32_t *ids; // NULL: text
    int n_ids;
    json_path path; // "prompt", "prompt[2]"
} openai_prompt;

typedef struct openai_request {
    json_t *root;
    openai_kind kind;
    field_text model;
    chat_message *messages; // chat, tokenize
    size_t n_messages;
    openai_prompt *prompts; // completion, tokenize; detokenize: one of ids
    int n_prompts;
    field_text suffix; // s NULL: absent
    int n_choices;     // per prompt
    int max_tokens;    // 0: absent
    bool stream, include_usage, echo, ignore_eos, wants_tier;
    bool add_special_tokens, add_generation_prompt, return_token_strs; // tokenize
    bool has_logprobs;
    sampling_params sampling; // seed drawn when absent
    job_stop stops[JOB_STOPS];
    int n_stops;
    size_t text_bytes; // of all prompts or messages: decides where they are tokenised
} openai_request;

// Zeroes *out first. After -1 too, openai_request_release is due. Parts that are not JSON come from
// a, which must outlive *out.
int openai_request_parse(openai_kind kind, const char *body, size_t n, const openai_limits *limits,
                         arena *a, openai_request *out, err *e);
void openai_request_release(openai_request *q);

#endif
