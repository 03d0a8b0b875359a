// The list of armed points: read once from the environment before main, counted under a mutex. It
// owns the list until the process ends. Decides nothing about what a failure means to its caller.
#include "base/failpoint.h"
#include "base/clock.h"
#include "base/err.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POINTS_MOST 32

typedef enum action { ACTION_KILL, ACTION_STOP, ACTION_SLEEP, ACTION_ERROR } action;

typedef struct point {
    char name[64];
    action what;
    int ms;            // of ACTION_SLEEP
    int64_t only, hit; // only: 0 = each time
    int per_cent;      // 0: always
} point;

atomic_bool failpoint_armed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; // guards hit and state
static point points[POINTS_MOST];
static int n_points;
static uint64_t state = 1; // SplitMix64

static uint64_t random_next(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// ---- the list

// A decimal number at *at, which moves past it.
static int64_t read_number(const char **at, const char *item) {
    char *end;
    errno = 0;
    long long v = strtoll(*at, &end, 10);
    if (errno || end == *at || v < 0)
        fatal("TIERGATE_FAILPOINTS: '%s' wants a number at '%s'", item, *at);
    *at = end;
    return v;
}

static const char *read_action(point *p, const char *at, const char *item) {
    static const struct {
        const char *word;
        action what;
    } words[] = {{"kill", ACTION_KILL},
                 {"stop", ACTION_STOP},
                 {"sleep:", ACTION_SLEEP},
                 {"error", ACTION_ERROR}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].word);
        if (strncmp(at, words[i].word, n))
            continue;
        at += n;
        p->what = words[i].what;
        if (p->what == ACTION_SLEEP)
            p->ms = (int)read_number(&at, item);
        return at;
    }
    fatal("TIERGATE_FAILPOINTS: '%s': an action is kill, stop, sleep:MS or error", item);
}

static void read_item(const char *item) {
    const char *at = strchr(item, '=');
    point *p = &points[n_points];
    if (!at || at == item || (size_t)(at - item) >= sizeof p->name || n_points == POINTS_MOST)
        fatal("TIERGATE_FAILPOINTS: '%s' is not NAME=ACTION, or one too many", item);
    memcpy(p->name, item, (size_t)(at - item));
    at++;
    if (strcmp(p->name, "seed") == 0) {
        state = (uint64_t)read_number(&at, item);
        memset(p->name, 0, sizeof p->name);
    } else {
        at = read_action(p, at, item);
        char mark = *at;
        if (mark == '@' || mark == '%') {
            at++;
            int64_t n = read_number(&at, item);
            p->only = mark == '@' ? n : 0;
            p->per_cent = mark == '%' ? (int)n : 0;
        }
        n_points++;
    }
    if (*at)
        fatal("TIERGATE_FAILPOINTS: '%s' ends in '%s'", item, at);
}

__attribute__((constructor)) static void read_environment(void) {
    const char *text = getenv("TIERGATE_FAILPOINTS");
    char *copy = text && *text ? strdup(text) : NULL, *rest = copy;
    for (char *item; copy && (item = strsep(&rest, ","));)
        read_item(item);
    free(copy);
    atomic_store(&failpoint_armed, n_points > 0);
}

// ---- a hit

static bool is_due_locked(point *p) {
    p->hit++;
    if (p->only)
        return p->hit == p->only;
    return !p->per_cent || random_next() % 100 < (uint64_t)p->per_cent;
}

static bool act(const point *p) {
    switch (p->what) {
    case ACTION_KILL:
        kill(getpid(), SIGKILL);
        break;
    case ACTION_STOP:
        raise(SIGSTOP); // to this thread: another one may take its time to stop us
        break;
    case ACTION_SLEEP:
        clock_sleep_ms(p->ms);
        break;
    case ACTION_ERROR:
        return true;
    }
    return false;
}

bool failpoint_hit(const char *name) {
    bool has_failed = false;
    for (int i = 0; i < n_points; i++) {
        if (strcmp(points[i].name, name))
            continue;
        pthread_mutex_lock(&mutex);
        bool is_due = is_due_locked(&points[i]);
        pthread_mutex_unlock(&mutex);
        if (is_due)
            has_failed |= act(&points[i]);
    }
    return has_failed;
}
