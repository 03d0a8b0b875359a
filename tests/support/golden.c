// Reads the goldens with jansson and runs an engine over a prompt the way a worker would: chunks,
// then one token a step. One engine, one thread; a failing engine call ends the test program.
#include "tests/support/golden.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOP = 5 };

static void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void *take(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p)
        abort();
    return p;
}

static int32_t *read_ids(json_t *array, int *n) {
    *n = (int)json_array_size(array);
    int32_t *ids = take((size_t)*n, sizeof *ids);
    for (int i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return ids;
}

static float *read_floats(json_t *array, int *n) {
    *n = (int)json_array_size(array);
    float *values = take((size_t)*n, sizeof *values);
    for (int i = 0; i < *n; i++)
        values[i] = (float)json_number_value(json_array_get(array, (size_t)i));
    return values;
}

// Steps of five pairs [id, log-probability, ...].
static void read_top(json_t *steps, golden *k) {
    k->top_ids = take((size_t)k->n_greedy * TOP, sizeof *k->top_ids);
    k->top_logprobs = take((size_t)k->n_greedy * TOP, sizeof *k->top_logprobs);
    for (int i = 0; i < k->n_greedy * TOP; i++) {
        json_t *step = json_array_get(steps, (size_t)(i / TOP));
        size_t at = (size_t)(2 * (i % TOP));
        k->top_ids[i] = (int32_t)json_integer_value(json_array_get(step, at));
        k->top_logprobs[i] = (float)json_number_value(json_array_get(step, at + 1));
    }
}

static void read_golden(json_t *j, golden *k) {
    int n;
    snprintf(k->name, sizeof k->name, "%s", json_string_value(json_object_get(j, "name")));
    const char *sum = json_string_value(json_object_get(j, "sha256"));
    snprintf(k->sha256, sizeof k->sha256, "%s", sum ? sum : "");
    k->ids = read_ids(json_object_get(j, "ids"), &k->n);
    k->logprobs = read_floats(json_object_get(j, "logprobs"), &n);
    if (k->n < 1 || n != k->n - 1)
        die(k->name, "as many log-probabilities as tokens after the first are wanted");
    k->greedy = read_ids(json_object_get(j, "greedy"), &k->n_greedy);
    read_top(json_object_get(j, "top"), k);
}

golden *goldens_read(const char *path, int *n) {
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error), *item;
    if (!root)
        die(path, error.text);
    json_t *list = json_object_get(root, "prompts");
    golden *all = take(list ? json_array_size(list) : json_object_size(root), sizeof *all);
    const char *key;
    size_t i;
    *n = 0;
    if (list)
        json_array_foreach(list, i, item) read_golden(item, &all[(*n)++]);
    else
        json_object_foreach(root, key, item) if (json_is_object(item))
            read_golden(item, &all[(*n)++]);
    json_decref(root);
    return all;
}

void goldens_free(golden *g, int n) {
    for (int i = 0; i < n; i++) {
        free(g[i].ids);
        free(g[i].logprobs);
        free(g[i].greedy);
        free(g[i].top_ids);
        free(g[i].top_logprobs);
    }
    free(g);
}

sampling_params greedy_params(int n_top_logprobs) {
    return (sampling_params){.top_p = 1, .repetition_penalty = 1, .n_top_logprobs = n_top_logprobs};
}

static engine_seq *new_seq(engine *g, const golden *k, int n, int n_top) {
    err e = {0};
    engine_seq *s;
    sampling_params p = greedy_params(n_top);
    if (engine_seq_new(g, &p, 0, k->ids, n, 0, NULL, &s, &e))
        die(k->name, e.message);
    return s;
}

static const engine_result *step(engine *g, const engine_row *row) {
    err e = {0};
    const engine_result *r;
    if (engine_step(g, row, 1, &r, &e))
        die("engine_step", e.message);
    return r;
}

void golden_compare(const golden *k, int n, const engine_sampled *scored, golden_diff *d) {
    for (int i = 0; i + 1 < n; i++) {
        double diff = fabs((double)scored[i].logprob - (double)k->logprobs[i]);
        d->sum += diff;
        d->max = fmax(d->max, diff);
        d->n++;
    }
}

static bool within_five(const golden *k, int step_index, const engine_sampled *got) {
    bool ours = false, theirs = false;
    for (int i = 0; i < TOP; i++) {
        ours |= k->top_ids[step_index * TOP + i] == got->id;
        theirs |= got->top[i].id == k->greedy[step_index];
    }
    if (!ours || !theirs)
        printf("%s: greedy token %d is %d, the golden's is %d: %s\n", k->name, step_index, got->id,
               k->greedy[step_index], ours ? "not in our top 5" : "not in the golden's top 5");
    return ours && theirs;
}

// r holds the prediction after the prompt.
static bool decode_agrees(engine *g, engine_seq *s, const golden *k, const engine_result *r) {
    for (int i = 0;; i++) {
        int32_t id = r->sampled[0].id;
        if (id != k->greedy[i])
            return within_five(k, i, &r->sampled[0]);
        if (i + 1 == k->n_greedy)
            return true;
        engine_row row = {.seq = s, .tokens = &id, .n = 1, .sample = true};
        r = step(g, &row);
    }
}

bool golden_run(engine *g, const golden *k, int n, int chunk, engine_sampled *out, bool greedy) {
    engine_seq *s = new_seq(g, k, n, TOP);
    const engine_result *r = NULL;
    for (int at = 0; at < n; at += chunk) {
        int size = n - at < chunk ? n - at : chunk;
        engine_row row = {.seq = s,
                          .tokens = k->ids + at,
                          .n = size,
                          .sample = greedy && at + size == n,
                          .prompt_logprobs = true};
        r = step(g, &row);
        if (at > 0)
            out[at - 1] = r->first[0];
        memcpy(out + at, r->prompt[0], (size_t)(size - 1) * sizeof *out);
    }
    bool agrees = !greedy || decode_agrees(g, s, k, r);
    engine_seq_free(g, s);
    return agrees;
}
