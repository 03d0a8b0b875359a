// JSON body -> openai_request: the tables of members and what must hold between them. Runs on the
// reactor or, for large bodies, on a pool thread; touches nothing but its arguments. Does not look
// at models: token ids and lengths are checked in server/openai_prompt.c.
#include "server/openai_request.h"
#include "base/id.h"
#include "server/openai_request_parts.h"
#include <float.h>
#include <string.h>

#define MAX_TOKENS 16777216.0
#define TOP_K 1000000.0
#define ABSENT -1

typedef struct wish {  // the record of the tables: numbers before they are put together
    openai_request *q; // first: readers of parts know no more of it
    field_text model, suffix;
    bool stream, echo, ignore_eos, logprobs;
    bool add_special_tokens, add_generation_prompt, return_token_strs;
    int64_t n, best_of, max_tokens, max_completion_tokens, top_k, top_logprobs, n_logprobs;
    double temperature, top_p, min_p, presence, frequency, repetition;
} wish;

#define AT(member) .at = offsetof(wish, member)

static const field sampled[] = {
    // chat and completions
    {"model", FIELD_TEXT, AT(model)},
    {"n", FIELD_INT, AT(n), .least = 1, .most = JOB_CHOICES},
    {"max_tokens", FIELD_INT, AT(max_tokens), .least = 1, .most = MAX_TOKENS},
    {"temperature", FIELD_REAL, AT(temperature), .least = 0, .most = 2},
    {"top_p", FIELD_REAL, AT(top_p), .least = 0, .most = 1},
    {"top_k", FIELD_INT, AT(top_k), .least = -1, .most = TOP_K},
    {"min_p", FIELD_REAL, AT(min_p), .least = 0, .most = 1},
    {"presence_penalty", FIELD_REAL, AT(presence), .least = -2, .most = 2},
    {"frequency_penalty", FIELD_REAL, AT(frequency), .least = -2, .most = 2},
    {"repetition_penalty", FIELD_REAL, AT(repetition), .least = 0.01, .most = 10},
    {"logit_bias", FIELD_OWN, .read = request_read_logit_bias},
    {"seed", FIELD_OWN, .read = request_read_seed},
    {"stop", FIELD_OWN, .read = request_read_stop},
    {"stream", FIELD_BOOL, AT(stream)},
    {"stream_options", FIELD_OWN, .read = request_read_stream_options},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos)},
    {"user", .kind = FIELD_LABEL},
    {.name = NULL},
};

static const field chat[] = {
    {"messages", FIELD_OWN, .read = request_read_messages},
    {"max_completion_tokens", FIELD_INT, AT(max_completion_tokens), .least = 1, .most = MAX_TOKENS},
    {"logprobs", FIELD_BOOL, AT(logprobs)},
    {"top_logprobs", FIELD_INT, AT(top_logprobs), .least = 0, .most = 20},
    {"response_format", FIELD_OWN, .read = request_read_response_format},
    {"modalities", FIELD_OWN, .read = request_read_modalities},
    {"service_tier", FIELD_OWN, .read = request_read_service_tier},
    {"metadata", FIELD_OWN, .read = request_read_metadata},
    {"store", FIELD_OWN, .read = field_only_false},
    {"tools", FIELD_OWN, .read = field_only_empty_array},
    {"tool_choice", FIELD_OWN, .read = field_only_none},
    {"parallel_tool_calls", FIELD_OWN, .read = field_only_false},
    {"functions", FIELD_OWN, .read = field_only_empty_array},
    {"function_call", FIELD_OWN, .read = field_only_none},
    {"safety_identifier", .kind = FIELD_LABEL},
    {"prompt_cache_key", .kind = FIELD_LABEL}, // prefixes are cached per tenant by themselves
    {"audio", .kind = FIELD_REFUSED},
    {"prediction", .kind = FIELD_REFUSED},
    {"reasoning_effort", .kind = FIELD_REFUSED},
    {"verbosity", .kind = FIELD_REFUSED},
    {"web_search_options", .kind = FIELD_REFUSED},
    {"prompt_cache_retention", .kind = FIELD_REFUSED},
    {.name = NULL},
};

static const field completion[] = {
    {"prompt", FIELD_OWN, .read = request_read_prompt},
    {"suffix", FIELD_TEXT, AT(suffix)},
    {"echo", FIELD_BOOL, AT(echo)},
    {"best_of", FIELD_INT, AT(best_of), .least = 1, .most = 20},
    {"logprobs", FIELD_INT, AT(n_logprobs), .least = 0, .most = 5},
    {"context", .kind = FIELD_REFUSED},
    {.name = NULL},
};

static const field tokenize[] = {
    {"model", FIELD_TEXT, AT(model)},
    {"prompt", FIELD_OWN, .read = request_read_prompt},
    {"messages", FIELD_OWN, .read = request_read_messages},
    {"add_special_tokens", FIELD_BOOL, AT(add_special_tokens)},
    {"add_generation_prompt", FIELD_BOOL, AT(add_generation_prompt)},
    {"return_token_strs", FIELD_BOOL, AT(return_token_strs)},
    {"tools", FIELD_OWN, .read = field_only_empty_array},
    {"continue_final_message", FIELD_OWN, .read = field_only_false},
    {"chat_template", .kind = FIELD_REFUSED},
    {.name = NULL},
};

static const field detokenize[] = {
    {"model", FIELD_TEXT, AT(model)},
    {"tokens", FIELD_OWN, .read = request_read_tokens},
    {.name = NULL},
};

static const struct {
    const field *tables[2];
    int n;
} tables_of[] = {
    [OPENAI_CHAT] = {{chat, sampled}, 2},
    [OPENAI_COMPLETION] = {{completion, sampled}, 2},
    [OPENAI_TOKENIZE] = {{tokenize}, 1},
    [OPENAI_DETOKENIZE] = {{detokenize}, 1},
};

// ---- what must hold between members

static int join_max_tokens(const wish *w, openai_request *q, err *e) {
    bool has_both = w->max_tokens != ABSENT && w->max_completion_tokens != ABSENT;
    if (has_both && w->max_tokens != w->max_completion_tokens)
        return err_set(e, ERR_INVALID, "max_completion_tokens",
                       "'max_completion_tokens' (%lld) and 'max_tokens' (%lld) must agree.",
                       (long long)w->max_completion_tokens, (long long)w->max_tokens);
    int64_t n = w->max_completion_tokens != ABSENT ? w->max_completion_tokens : w->max_tokens;
    q->max_tokens = n == ABSENT ? 0 : (int)n;
    return 0;
}

static int join_logprobs(const wish *w, openai_request *q, err *e) {
    q->sampling.n_top_logprobs = -1;
    if (q->kind == OPENAI_COMPLETION) {
        q->has_logprobs = w->n_logprobs != ABSENT;
        q->sampling.n_top_logprobs = (int32_t)w->n_logprobs;
        return 0;
    }
    if (w->top_logprobs != ABSENT && !w->logprobs)
        return err_set(e, ERR_INVALID, "top_logprobs",
                       "'top_logprobs' is allowed only when 'logprobs' is true.");
    q->has_logprobs = w->logprobs;
    if (w->logprobs)
        q->sampling.n_top_logprobs = w->top_logprobs == ABSENT ? 0 : (int32_t)w->top_logprobs;
    return 0;
}

static int join_choices(const wish *w, const openai_limits *limits, openai_request *q, err *e) {
    q->n_choices = (int)w->n;
    int most = limits->max_choices;
    if (w->n > most)
        return err_set(e, ERR_INVALID, "n", "'n' must be between 1 and %d, not %d.", most,
                       q->n_choices);
    if (q->n_prompts > 1 && w->n * q->n_prompts > most)
        return err_set(e, ERR_INVALID, "prompt",
                       "%d prompts with n = %d make more than %d choices in one request.",
                       q->n_prompts, q->n_choices, most);
    if (w->best_of != ABSENT && w->best_of != w->n)
        return err_set(e, ERR_UNSUPPORTED, "best_of",
                       "'best_of' is supported as equal to 'n' only.");
    return 0;
}

static int join_sampling(const wish *w, openai_request *q, err *e) {
    sampling_params *s = &q->sampling;
    if (w->min_p >= 1)
        return err_set(e, ERR_INVALID, "min_p", "'min_p' must be at least 0 and below 1.");
    s->temperature = (float)w->temperature;
    // 0 means: the likeliest token alone; so does the least positive number.
    s->top_p = w->top_p < FLT_MIN ? FLT_MIN : (float)w->top_p;
    s->min_p = (float)w->min_p;
    s->top_k = w->top_k < 0 ? 0 : (int32_t)w->top_k;
    s->presence_penalty = (float)w->presence;
    s->frequency_penalty = (float)w->frequency;
    s->repetition_penalty = (float)w->repetition;
    return 0;
}

static int join_stream(const wish *w, openai_request *q, err *e) {
    if (json_is_object(json_object_get(q->root, "stream_options")) && !w->stream)
        return err_set(e, ERR_INVALID, "stream_options",
                       "'stream_options' is allowed only when 'stream' is true.");
    q->stream = w->stream;
    return 0;
}

static int join_suffix(const wish *w, openai_request *q, err *e) {
    q->suffix = w->suffix;
    if (!w->suffix.s)
        return 0;
    if (w->echo)
        return err_set(e, ERR_INVALID, "echo", "'echo' is not possible together with 'suffix'.");
    for (int i = 0; i < q->n_prompts; i++)
        if (q->prompts[i].ids)
            return err_set(e, ERR_INVALID, "suffix",
                           "'suffix' needs a prompt of text, not of token ids.");
    q->text_bytes += w->suffix.n * (size_t)q->n_prompts;
    return 0;
}

static int join_sampled(const wish *w, const openai_limits *limits, openai_request *q, err *e) {
    if (q->kind == OPENAI_CHAT && !q->messages)
        return field_missing("messages", e);
    if (q->kind == OPENAI_COMPLETION && !q->prompts)
        return field_missing("prompt", e);
    if (join_max_tokens(w, q, e) || join_logprobs(w, q, e) || join_choices(w, limits, q, e) ||
        join_sampling(w, q, e) || join_stream(w, q, e) || join_suffix(w, q, e))
        return -1;
    q->echo = w->echo;
    q->ignore_eos = w->ignore_eos;
    return 0;
}

// Templates add their special tokens themselves; a plain prompt has no turn to open.
static int refuse_misplaced(const openai_request *q, const char *name, const char *belongs_to,
                            err *e) {
    json_t *v = json_object_get(q->root, name);
    if (!v || json_is_null(v))
        return 0;
    return err_set(e, ERR_UNSUPPORTED, name, "'%s' is possible together with '%s' only.", name,
                   belongs_to);
}

static int join_tokenize(const wish *w, openai_request *q, err *e) {
    if (!q->messages == !q->prompts)
        return err_set(e, ERR_INVALID, "prompt", "Either 'prompt' or 'messages' is required.");
    if (q->n_prompts > 1 || (q->prompts && q->prompts->ids))
        return err_set(e, ERR_INVALID, "prompt", "'prompt' must be a string.");
    if (q->messages ? refuse_misplaced(q, "add_special_tokens", "prompt", e)
                    : refuse_misplaced(q, "add_generation_prompt", "messages", e))
        return -1;
    q->add_special_tokens = w->add_special_tokens;
    q->add_generation_prompt = w->add_generation_prompt;
    q->return_token_strs = w->return_token_strs;
    return 0;
}

static int join(const wish *w, const openai_limits *limits, openai_request *q, err *e) {
    if (!w->model.s || !w->model.n)
        return field_missing("model", e);
    q->model = w->model;
    if (q->kind == OPENAI_TOKENIZE)
        return join_tokenize(w, q, e);
    if (q->kind == OPENAI_DETOKENIZE)
        return q->prompts ? 0 : field_missing("tokens", e);
    return join_sampled(w, limits, q, e);
}

int openai_request_parse(openai_kind kind, const char *body, size_t n, const openai_limits *limits,
                         arena *a, openai_request *out, err *e) {
    memset(out, 0, sizeof *out);
    out->kind = kind;
    out->sampling.seed = id_random_u64();
    if (openai_json_parse(body, n, limits->json_depth, &out->root, e))
        return -1;
    wish w = {.q = out,
              .n = 1,
              .best_of = ABSENT,
              .max_tokens = ABSENT,
              .max_completion_tokens = ABSENT,
              .top_logprobs = ABSENT,
              .n_logprobs = ABSENT,
              .temperature = 1,
              .top_p = 1,
              .repetition = 1,
              .add_special_tokens = true,
              .add_generation_prompt = true};
    field_scope scope = {.arena = a, .limits = limits};
    if (field_read_object(out->root, "", tables_of[kind].tables, tables_of[kind].n, &scope, &w, e))
        return -1;
    return join(&w, limits, out, e);
}

void openai_request_release(openai_request *q) {
    json_decref(q->root);
    q->root = NULL;
}
