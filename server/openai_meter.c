// The API's metrics. Registered once; updated from any reactor without locks, but for the counter
// of a status that is seldom said.
#include "server/openai_meter.h"
#include "base/metric.h"
#include <stdio.h>

#define MAX_ROUTES 32

static const int statuses[] = {200, 400, 401, 403, 404, 409, 413, 429, 499, 500, 503, 504};
#define N_STATUSES (int)(sizeof statuses / sizeof *statuses)

static const double first_token_bounds[] = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                            2.5,  5,     10,   30,  60,   120};
static const double total_bounds[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                      2.5,   5,    10,    30,   60,  120,  300, 600};
#define N(array) (int)(sizeof array / sizeof *array)

static metric *ended[MAX_ROUTES + 1][N_STATUSES]; // the last row: no route
static metric *first_token[MAX_ROUTES], *total[MAX_ROUTES];
static metric *prompt_tokens, *completion_tokens, *open_streams;

static metric *counter_of(const char *route_name, int status) {
    char labels[96];
    snprintf(labels, sizeof labels, "route=\"%s\",code=\"%d\"", route_name, status);
    return metric_counter("tiergate_requests_total", labels,
                          "Answers of the API by route and HTTP status (499: the client left).");
}

static void register_route(int i) {
    const char *name = i < n_api_routes ? api_routes[i].name : "none";
    for (int s = 0; s < N_STATUSES; s++)
        ended[i][s] = counter_of(name, statuses[s]);
    if (i == n_api_routes)
        return;
    char labels[64];
    snprintf(labels, sizeof labels, "route=\"%s\"", name);
    first_token[i] = metric_histogram("tiergate_first_token_seconds", labels,
                                      "From the head of a request to its first token.",
                                      first_token_bounds, N(first_token_bounds));
    total[i] = metric_histogram("tiergate_request_seconds", labels,
                                "From the head of a request to the end of its answer.",
                                total_bounds, N(total_bounds));
}

void meter_register(void) {
    for (int i = 0; i <= n_api_routes && i <= MAX_ROUTES; i++)
        register_route(i);
    prompt_tokens = metric_counter("tiergate_tokens_total", "kind=\"prompt\"",
                                   "Tokens taken in and handed out.");
    completion_tokens = metric_counter("tiergate_tokens_total", "kind=\"completion\"",
                                       "Tokens taken in and handed out.");
    open_streams = metric_gauge("tiergate_open_streams", "", "Answers being streamed.");
}

static int index_of(const route *r) { return r ? (int)(r - api_routes) : n_api_routes; }

void meter_ended(const route *r, int status, int64_t total_us) {
    int s = 0;
    while (s < N_STATUSES && statuses[s] != status)
        s++;
    metric_add(s < N_STATUSES ? ended[index_of(r)][s] : counter_of(r ? r->name : "none", status),
               1);
    if (r)
        metric_observe(total[index_of(r)], (double)total_us / 1e6);
}

void meter_tokens(int prompt, int completion) {
    metric_add(prompt_tokens, prompt);
    metric_add(completion_tokens, completion);
}

void meter_first_token(const route *r, int64_t us) {
    metric_observe(first_token[index_of(r)], (double)us / 1e6);
}

void meter_stream(int by) { metric_add(open_streams, by); }
