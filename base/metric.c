// Metrics registry. One process-wide list of families, each with its series; entries are never
// freed. Registration and rendering take a mutex, updates are atomic operations only. Does not
// serve HTTP (server/ops does).
#include "base/metric.h"
#include "base/err.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef enum metric_kind { COUNTER, GAUGE, HISTOGRAM } metric_kind;

struct metric {
    metric *next; // same family
    metric_kind kind;
    char *labels;
    _Atomic int64_t value;    // counter, gauge
    int n_bounds;             // histogram from here
    double *bounds;           // ascending
    _Atomic uint64_t *counts; // n_bounds + 1, not cumulated
    _Atomic double sum;
};

typedef struct family {
    struct family *next;
    char *name, *help;
    metric_kind kind;
    metric *series;
} family;

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static family *registry; // in order of registration

static void *must(void *p) {
    if (!p)
        fatal("out of memory in the metrics registry");
    return p;
}

static bool is_name(const char *s) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:0123456789";
    return *s && !strchr("0123456789", *s) && strspn(s, letters) == strlen(s);
}

static family *find_family_locked(const char *name, const char *help, metric_kind kind) {
    family **at = &registry;
    while (*at && strcmp((*at)->name, name) != 0)
        at = &(*at)->next;
    if (*at && (*at)->kind != kind)
        fatal("metric %s is registered with two types", name);
    if (!*at) {
        if (!is_name(name))
            fatal("\"%s\" is no name for a metric", name);
        *at = must(calloc(1, sizeof **at));
        **at = (family){.name = must(strdup(name)), .help = must(strdup(help)), .kind = kind};
    }
    return *at;
}

static metric *find_series_locked(family *f, const char *labels, const double *bounds, int n) {
    metric **at = &f->series;
    while (*at && strcmp((*at)->labels, labels) != 0)
        at = &(*at)->next;
    if (*at)
        return *at;
    metric *m = must(calloc(1, sizeof *m));
    m->kind = f->kind;
    m->labels = must(strdup(labels));
    m->n_bounds = n;
    if (f->kind == HISTOGRAM) {
        m->bounds = must(calloc((size_t)n + 1, sizeof(double)));
        m->counts = must(calloc((size_t)n + 1, sizeof(_Atomic uint64_t)));
        for (int i = 0; i < n; i++)
            m->bounds[i] = bounds[i];
    }
    return *at = m;
}

static metric *add(metric_kind kind, const char *name, const char *labels, const char *help,
                   const double *bounds, int n) {
    pthread_mutex_lock(&registry_mutex);
    metric *m = find_series_locked(find_family_locked(name, help, kind), labels, bounds, n);
    pthread_mutex_unlock(&registry_mutex);
    return m;
}

metric *metric_counter(const char *name, const char *labels, const char *help) {
    return add(COUNTER, name, labels, help, NULL, 0);
}

metric *metric_gauge(const char *name, const char *labels, const char *help) {
    return add(GAUGE, name, labels, help, NULL, 0);
}

metric *metric_histogram(const char *name, const char *labels, const char *help,
                         const double *bounds, int n) {
    for (int i = 1; i < n; i++)
        if (!(bounds[i - 1] < bounds[i]))
            fatal("the bounds of metric %s do not ascend", name);
    return add(HISTOGRAM, name, labels, help, bounds, n);
}

void metric_add(metric *m, int64_t by) {
    atomic_fetch_add_explicit(&m->value, by, memory_order_relaxed);
}

void metric_set(metric *m, int64_t value) {
    atomic_store_explicit(&m->value, value, memory_order_relaxed);
}

void metric_observe(metric *m, double value) {
    int at = 0;
    while (at < m->n_bounds && value > m->bounds[at])
        at++;
    double sum = atomic_load_explicit(&m->sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&m->sum, &sum, sum + value))
        ;
    atomic_fetch_add_explicit(&m->counts[at], 1, memory_order_relaxed);
}

int64_t metric_value(const metric *m) {
    if (m->kind != HISTOGRAM)
        return atomic_load_explicit(&((metric *)m)->value, memory_order_relaxed);
    uint64_t n = 0;
    for (int i = 0; i <= m->n_bounds; i++)
        n += atomic_load_explicit(&m->counts[i], memory_order_relaxed);
    return (int64_t)n;
}

// ---- rendering

static void put_help(buf *out, const family *f) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    buf_printf(out, "# HELP %s ", f->name);
    for (const char *p = f->help; *p; p++)
        buf_puts(out, *p == '\n' ? "\\n" : *p == '\\' ? "\\\\" : (char[]){*p, '\0'});
    buf_printf(out, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
}

static void put_value(buf *out, const family *f, const metric *m) {
    buf_puts(out, f->name);
    if (m->labels[0])
        buf_printf(out, "{%s}", m->labels);
    buf_printf(out, " %lld\n", (long long)metric_value(m));
}

static void put_histogram(buf *out, const family *f, const metric *m) {
    const char *comma = m->labels[0] ? "," : "";
    uint64_t n = 0;
    for (int i = 0; i <= m->n_bounds; i++) {
        n += atomic_load_explicit(&m->counts[i], memory_order_relaxed);
        buf_printf(out, "%s_bucket{%s%sle=\"", f->name, m->labels, comma);
        if (i < m->n_bounds)
            buf_printf(out, "%.15g\"} %llu\n", m->bounds[i], (unsigned long long)n);
        else
            buf_printf(out, "+Inf\"} %llu\n", (unsigned long long)n);
    }
    const char *open = m->labels[0] ? "{" : "", *close = m->labels[0] ? "}" : "";
    buf_printf(out, "%s_sum%s%s%s %.15g\n", f->name, open, m->labels, close,
               atomic_load_explicit(&((metric *)m)->sum, memory_order_relaxed));
    buf_printf(out, "%s_count%s%s%s %llu\n", f->name, open, m->labels, close,
               (unsigned long long)n);
}

void metric_render(buf *out) {
    pthread_mutex_lock(&registry_mutex);
    for (const family *f = registry; f; f = f->next) {
        put_help(out, f);
        for (const metric *m = f->series; m; m = m->next)
            (f->kind == HISTOGRAM ? put_histogram : put_value)(out, f, m);
    }
    pthread_mutex_unlock(&registry_mutex);
}
