// What is written from the table: --help, the sample file, docs/config.md, and the values of a
// config as a file. Owns nothing; any thread.
#include "base/config_internal.h"
#include <string.h>

static bool starts_section(int i) {
    return i == 0 || strcmp(config_rows[i].section, config_rows[i - 1].section) != 0;
}

static bool is_model(const config_row *row) { return strcmp(row->section, "model") == 0; }

// What may be written, in words.
static void put_domain(const config_row *row, buf *out) {
    switch (row->type) {
    case CONFIG_STRING:
        buf_puts(out, "text");
        break;
    case CONFIG_NAME:
        buf_puts(out, "name");
        break;
    case CONFIG_CHOICE: {
        const char *p = row->choices[0] == '|' ? row->choices + 1 : row->choices;
        for (; *p; p++)
            buf_puts(out, *p == '|' ? ", " : (char[]){*p, '\0'});
        break;
    }
    case CONFIG_NUMBER:
    case CONFIG_SIZE:
        config_put_number(row, row->least, out);
        buf_puts(out, " to ");
        config_put_number(row, row->most, out);
        break;
    case CONFIG_SWITCH:
        buf_puts(out, "true, false");
        break;
    case CONFIG_LISTEN:
        buf_puts(out, "host:port");
        break;
    case CONFIG_REDIS:
    case CONFIG_POSTGRES:
        buf_puts(out, "address");
        break;
    }
}

void config_help(buf *out) {
    buf_puts(out, "Settings: --set SECTION.KEY=VALUE wins over TIERGATE_SECTION_KEY in the "
                  "environment, that over the file.\n");
    for (int i = 0; i < config_n_rows; i++) {
        const config_row *row = &config_rows[i];
        buf_printf(out, "  %s.%s%s  [", row->section, is_model(row) ? "NAME." : "", row->name);
        put_domain(row, out);
        buf_puts(out, "]");
        if (row->value[0])
            buf_printf(out, "  (%s)", row->value);
        buf_printf(out, "\n      %s\n", row->help);
    }
}

void config_sample(buf *out) {
    buf_puts(out,
             "# Tiergate's configuration. Every line that is commented out shows the default.\n"
             "# Sizes take KiB, MiB and GiB. A key marked (live) is taken over on SIGHUP.\n");
    for (int i = 0; i < config_n_rows; i++) {
        const config_row *row = &config_rows[i];
        if (starts_section(i) && is_model(row))
            buf_puts(out, "\n# One section per model; NAME is the id that clients see.\n"
                          "#[model NAME]\n");
        else if (starts_section(i))
            buf_printf(out, "\n[%s]\n", row->section);
        buf_printf(out, "# %s%s\n#%s =%s%s\n", row->help, row->reload ? " (live)" : "", row->name,
                   row->value[0] ? " " : "", row->value);
    }
}

void config_markdown(buf *out) {
    buf_puts(out, "# Configuration\n\n"
                  "Generated from the table in base/config_table.c by `make docs-config`.\n\n"
                  "A file in INI form, the environment (`TIERGATE_SECTION_KEY`) and `--set "
                  "section.key=value`; the last one wins.\nSizes take `KiB`, `MiB` and `GiB`. "
                  "*Live* keys are taken over on SIGHUP, the others at the next start. Values\n"
                  "never hold secrets: keys name the files that do.\n");
    for (int i = 0; i < config_n_rows; i++) {
        const config_row *row = &config_rows[i];
        if (starts_section(i))
            buf_printf(out,
                       "\n## [%s]\n\n| key | values | default | live | meaning |\n"
                       "|---|---|---|---|---|\n",
                       is_model(row) ? "model NAME" : row->section);
        buf_printf(out, "| `%s` | ", row->name);
        put_domain(row, out);
        buf_printf(out, " | %s%s%s | %s | %s |\n", row->value[0] ? "`" : "", row->value,
                   row->value[0] ? "`" : "", row->reload ? "yes" : "", row->help);
    }
}

static void dump_row(const config_row *row, const void *holder, buf *out) {
    buf_printf(out, "%s = ", row->name);
    config_put_value(row, holder, out);
    buf_puts(out, "\n");
}

void config_dump(const config *c, buf *out) {
    for (int i = 0; i < config_n_rows && !is_model(&config_rows[i]); i++) {
        if (starts_section(i))
            buf_printf(out, "[%s]\n", config_rows[i].section);
        dump_row(&config_rows[i], c, out);
    }
    for (int m = 0; m < c->n_models; m++) {
        buf_printf(out, "[model %s]\n", c->models[m].name);
        for (int i = 0; i < config_n_rows; i++)
            if (is_model(&config_rows[i]))
                dump_row(&config_rows[i], &c->models[m], out);
    }
}
