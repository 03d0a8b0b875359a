// The long-running roles and the one-shot commands that only need a configuration: gateway, worker,
// migrate, check-config.
#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "base/metric.h"
#include "cli/commands.h"
#include "cli/migrate.h"
#include "cli/settings.h"
#include "server/gateway.h"
#include "worker/worker.h"

static const struct {
    const char *name;
    log_level level;
} levels[] = {{"debug", LOG_DEBUG}, {"info", LOG_INFO}, {"warn", LOG_WARN}, {"error", LOG_ERROR}};

static void log_start(const config *c, const char *role) {
    log_level least = LOG_INFO;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (!strcmp(levels[i].name, c->log_level))
            least = levels[i].level;
    log_init(role, least);
}

// A role needs both stores; only `up` starts them itself.
static int stores_check(const config *c, err *e) {
    if (settings_need_postgres(c, e))
        return -1;
    if (!*c->redis_address)
        return err_set(e, ERR_INVALID, "redis.address",
                       "[redis] address is not set: where is Redis?");
    return 0;
}

int command_gateway(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    int64_t ready_fd = -1;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"ready-fd", OPTION_INT, &ready_fd, "N",
         "descriptor that is told in one line of JSON when it serves"},
    };
    int shown = settings_parse(rows, sizeof rows / sizeof *rows, argc, argv,
                               "tiergate gateway [options]", e);
    if (shown)
        return shown < 0 ? -1 : 0;
    if (settings_load(&s, &c, e) || stores_check(&c, e))
        return -1;
    log_start(&c, "gateway");
    return gateway_run(&c, *s.path ? s.path : NULL, s.sets.items, s.sets.n, (int)ready_fd, e);
}

// What a worker serves: --model, else the model of [worker] tier, else the only one.
static int model_choose(const config *c, const char **name, err *e) {
    const config_model *m = *name ? config_find_model(c, *name) : NULL;
    if (*name && !m)
        return err_set(e, ERR_INVALID, "model", "no [model %s] is configured", *name);
    if (m && *c->tier && strcmp(c->tier, m->tier))
        return err_set(e, ERR_INVALID, "worker.tier",
                       "model %s is of tier %s, but [worker] tier is %s", m->name, m->tier,
                       c->tier);
    for (int i = 0; !m && *c->tier && i < c->n_models; i++)
        m = strcmp(c->models[i].tier, c->tier) ? NULL : &c->models[i];
    if (!m && *c->tier)
        return err_set(e, ERR_INVALID, "worker.tier", "no model of tier %s is configured", c->tier);
    if (!m && c->n_models == 1)
        m = &c->models[0];
    if (!m)
        return err_set(e, ERR_INVALID, "model",
                       "%d models are configured: say which one with --model NAME", c->n_models);
    *name = m->name;
    return 0;
}

int command_worker(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    int64_t ready_fd = -1;
    const char *model = NULL;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"model", OPTION_TEXT, &model, "NAME",
         "which [model NAME] to serve (default: the only one)"},
        {"ready-fd", OPTION_INT, &ready_fd, "N",
         "descriptor that is told in one line of JSON when it claims"},
    };
    int shown = settings_parse(rows, sizeof rows / sizeof *rows, argc, argv,
                               "tiergate worker [options]", e);
    if (shown)
        return shown < 0 ? -1 : 0;
    if (settings_load(&s, &c, e) || stores_check(&c, e))
        return -1;
    if (model_choose(&c, &model, e))
        return -1;
    log_start(&c, "worker");
    return worker_run(&c, model, (int)ready_fd, e);
}

int command_migrate(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    int n_applied;
    const option_row rows[] = {SETTINGS_ROWS(&s)};
    int shown = settings_parse(rows, sizeof rows / sizeof *rows, argc, argv,
                               "tiergate migrate [options]", e);
    if (shown)
        return shown < 0 ? -1 : 0;
    if (settings_load(&s, &c, e) || settings_need_postgres(&c, e) ||
        migrate_run(c.postgres_url, &n_applied, e))
        return -1;
    printf("%d migration%s applied; the database is up to date\n", n_applied,
           n_applied == 1 ? "" : "s");
    return 0;
}

int command_check_config(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    bool defaults = false;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"defaults", OPTION_FLAG, &defaults, NULL,
         "print every key with its default and meaning, as a sample file"},
    };
    int shown = settings_parse(rows, sizeof rows / sizeof *rows, argc, argv,
                               "tiergate check-config [options]", e);
    if (shown)
        return shown < 0 ? -1 : 0;
    buf text = {0};
    if (defaults)
        config_sample(&text);
    else if (settings_load(&s, &c, e))
        return -1;
    else
        config_dump(&c, &text);
    fputs(text.data, stdout);
    buf_release(&text);
    if (!defaults)
        printf("\n; %s is valid: the values in force are above\n",
               *s.path ? s.path : "(no file: the defaults)");
    return 0;
}
