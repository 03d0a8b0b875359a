// One value: text to field and back, by the type of its row. Owns nothing; any thread.
// Does not know where the text came from; the caller names the key and the place.
#include "base/config_internal.h"
#include "base/pg.h"
#include "base/redis.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int wrong(err *e, const char *wanted, const char *text) {
    return err_set(e, ERR_INVALID, NULL, "want %s, got \"%.100s\"", wanted, text);
}

// ---- text

// What cannot be written to an INI file and read back is no value.
static bool is_plain(const char *text) {
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if (iscntrl((unsigned char)text[i]) || (text[i] == ';' && i > 0 && text[i - 1] == ' '))
            return false;
    return n == 0 || (text[0] != ' ' && text[0] != ';' && text[n - 1] != ' ');
}

static int set_text(const config_row *row, char *field, const char *text, err *e) {
    size_t n = strlen(text);
    if (n >= row->size)
        return err_set(e, ERR_INVALID, NULL, "at most %zu characters, got %zu", row->size - 1, n);
    if (n < (size_t)row->least)
        return err_set(e, ERR_INVALID, NULL, "must not be empty");
    if (!is_plain(text))
        return err_set(e, ERR_INVALID, NULL,
                       "no control characters, no blank at either end and no \" ;\" in a value");
    memset(field, 0, row->size); // so that equal values are equal bytes
    memcpy(field, text, n);
    return 0;
}

static int set_name(const config_row *row, char *field, const char *text, err *e) {
    for (const char *p = text; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-:/", *p))
            return wrong(e, "letters, digits and . _ - : /", text);
    return set_text(row, field, text, e);
}

static int set_choice(const config_row *row, char *field, const char *text, err *e) {
    size_t n = strlen(text);
    for (const char *p = row->choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (strcspn(p, "|") == n && memcmp(p, text, n) == 0)
            return set_text(row, field, text, e);
    return err_set(e, ERR_INVALID, NULL, "want one of %s, got \"%.100s\"",
                   row->choices[0] == '|' ? row->choices + 1 : row->choices, text);
}

// ---- numbers

static const struct unit {
    const char *name;
    int64_t bytes;
} units[] = {{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}};

static int64_t unit_of(const config_row *row, const char *suffix) {
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(suffix, units[i].name) == 0 && (row->type == CONFIG_SIZE || !*suffix))
            return units[i].bytes;
    return 0;
}

void config_put_number(const config_row *row, int64_t n, buf *out) {
    size_t i = row->type == CONFIG_SIZE ? 0 : sizeof units / sizeof *units - 1;
    while (n == 0 ? units[i].bytes > 1 : n % units[i].bytes != 0)
        i++;
    buf_printf(out, "%lld%s", (long long)(n / units[i].bytes), units[i].name);
}

static int set_number(const config_row *row, int64_t *field, const char *text, err *e) {
    char *end;
    errno = 0;
    int64_t n = strtoll(text, &end, 10);
    int64_t unit = unit_of(row, end);
    bool is_number = isdigit((unsigned char)*text) && unit > 0 && errno == 0;
    if (is_number && !__builtin_mul_overflow(n, unit, &n) && n >= row->least && n <= row->most) {
        *field = n;
        return 0;
    }
    buf wanted = {0};
    buf_puts(&wanted, row->type == CONFIG_SIZE ? "a size from " : "a whole number from ");
    config_put_number(row, row->least, &wanted);
    buf_puts(&wanted, " to ");
    config_put_number(row, row->most, &wanted);
    wrong(e, wanted.data, text);
    buf_release(&wanted);
    return -1;
}

static int set_switch(bool *field, const char *text, err *e) {
    bool is_true = strcmp(text, "true") == 0;
    if (!is_true && strcmp(text, "false") != 0)
        return wrong(e, "true or false", text);
    *field = is_true;
    return 0;
}

// ---- addresses

static bool is_host_name(const char *s) {
    return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") ==
                     strlen(s);
}

static int set_listen(config_listen *field, const char *text, err *e) {
    static const char wanted[] = "host:port or [ipv6]:port, port 0 to 65535";
    const char *colon = strrchr(text, ':');
    char *end;
    if (!colon || !isdigit((unsigned char)colon[1]))
        return wrong(e, wanted, text);
    unsigned long port = strtoul(colon + 1, &end, 10);
    bool is_six = text[0] == '[' && colon > text + 1 && colon[-1] == ']';
    size_t n = (size_t)(colon - text) - (is_six ? 2 : 0);
    config_listen made = {.port = (uint16_t)port};
    if (*end || port > 65535 || n >= sizeof made.host)
        return wrong(e, wanted, text);
    memcpy(made.host, text + (is_six ? 1 : 0), n);
    struct in6_addr six;
    if (is_six ? inet_pton(AF_INET6, made.host, &six) != 1 : !is_host_name(made.host))
        return wrong(e, wanted, text);
    *field = made;
    return 0;
}

static int set_redis(const config_row *row, char *field, const char *text, err *e) {
    if (*text && redis_check_address(text, e))
        return -1;
    return set_text(row, field, text, e);
}

static int set_postgres(const config_row *row, char *field, const char *text, err *e) {
    if (*text && pg_check_url(text, e))
        return -1;
    return set_text(row, field, text, e);
}

// ---- by type

int config_set_value(const config_row *row, void *holder, const char *text, err *e) {
    void *field = (char *)holder + row->offset;
    switch (row->type) {
    case CONFIG_STRING:
        return set_text(row, field, text, e);
    case CONFIG_NAME:
        return set_name(row, field, text, e);
    case CONFIG_CHOICE:
        return set_choice(row, field, text, e);
    case CONFIG_NUMBER:
    case CONFIG_SIZE:
        return set_number(row, field, text, e);
    case CONFIG_SWITCH:
        return set_switch(field, text, e);
    case CONFIG_LISTEN:
        return set_listen(field, text, e);
    case CONFIG_REDIS:
        return set_redis(row, field, text, e);
    case CONFIG_POSTGRES:
        return set_postgres(row, field, text, e);
    }
    fatal("configuration row %s.%s has no type", row->section, row->name);
}

void config_put_value(const config_row *row, const void *holder, buf *out) {
    const void *field = (const char *)holder + row->offset;
    const config_listen *at = field;
    switch (row->type) {
    case CONFIG_NUMBER:
    case CONFIG_SIZE:
        config_put_number(row, *(const int64_t *)field, out);
        break;
    case CONFIG_SWITCH:
        buf_puts(out, *(const bool *)field ? "true" : "false");
        break;
    case CONFIG_LISTEN:
        buf_printf(out, strchr(at->host, ':') ? "[%s]:%u" : "%s:%u", at->host, at->port);
        break;
    default:
        buf_puts(out, field);
    }
}
