// One connection to PostgreSQL (libpq), used by one thread at a time. Statements are sent without
// blocking and waited for with a limit, because a hung server still acknowledges at the TCP level.
// Never sends a statement twice: whether a lost one took effect only its caller can find out.
#include "base/pg.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/pg_internal.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_MS 1000

int pg_check_url(const char *url, err *e) {
    char *why = NULL;
    PQconninfoOption *options = PQconninfoParse(url, &why);
    int rc = 0;
    if (!options)
        rc = err_set(e, ERR_INVALID, NULL, "no address of PostgreSQL: %.*s",
                     why ? (int)strcspn(why, "\n") : 13, why ? why : "out of memory");
    PQconninfoFree(options);
    PQfreemem(why);
    return rc;
}

// ---- connecting

static void on_notice(void *ctx, const char *message) {
    (void)ctx;
    log_event(LOG_DEBUG, "postgres.notice", "{s:s%}", "message", message, strcspn(message, "\n"));
}

static int unavailable(err *e, const char *what, const char *why) {
    err_set(e, ERR_DEPENDENCY, NULL, "PostgreSQL %s: %.*s", what, (int)strcspn(why, "\n"), why);
    if (e)
        e->retry_ms = RETRY_MS;
    return -1;
}

// What stands before dbname are defaults; the URL may say otherwise.
static PGconn *open_connection(const char *url) {
    static const char *const names[] = {
        "application_name", "client_encoding", "connect_timeout",
        "tcp_user_timeout", "keepalives_idle", "keepalives_interval",
        "keepalives_count", "dbname",          NULL};
    const char *const values[] = {"tiergate", "UTF8", "2", "5000", "5", "2", "3", url, NULL};
    return PQconnectdbParams(names, values, 1);
}

void pg_drop(pg *p) {
    PQfinish(p->c);
    p->c = NULL;
}

static int connect_now(pg *p, err *e) {
    p->c = open_connection(p->url);
    if (p->c && PQstatus(p->c) == CONNECTION_OK && PQsetnonblocking(p->c, 1) == 0) {
        PQsetNoticeProcessor(p->c, on_notice, NULL);
        p->n_connects++;
        return 0;
    }
    unavailable(e, "cannot be reached", p->c ? PQerrorMessage(p->c) : "out of memory");
    pg_drop(p);
    return -1;
}

int pg_connect(const char *url, pg **out, err *e) {
    pg *p = calloc(1, sizeof *p);
    if (!p || !(p->url = strdup(url))) {
        free(p);
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    }
    p->limit_ms = PG_LIMIT_MS;
    if (connect_now(p, e)) {
        pg_close(p);
        return -1;
    }
    *out = p;
    return 0;
}

void pg_close(pg *p) {
    if (!p)
        return;
    pg_drop(p);
    free(p->url);
    free(p);
}

void pg_set_limit(pg *p, int ms) { p->limit_ms = ms; }

// An idle server only writes when it goes (a last message, then the end) or notifies.
static void look_for_end(pg *p) {
    struct pollfd fd = {.fd = PQsocket(p->c), .events = POLLIN};
    while (poll(&fd, 1, 0) > 0 && PQconsumeInput(p->c))
        ;
}

int pg_ensure(pg *p, err *e) {
    if (p->c) {
        bool in_transaction = PQtransactionStatus(p->c) == PQTRANS_INTRANS ||
                              PQtransactionStatus(p->c) == PQTRANS_INERROR;
        look_for_end(p);
        if (PQstatus(p->c) == CONNECTION_OK)
            return 0;
        pg_drop(p);
        if (in_transaction)
            return unavailable(e, "was lost", "the connection ended inside a transaction");
    }
    return connect_now(p, e);
}

// ---- one statement

// Waits until the socket can be read (or written, when asked) or the time is up. deadline 0: none.
static int wait_socket(pg *p, bool also_write, int64_t deadline_ms) {
    struct pollfd fd = {.fd = PQsocket(p->c),
                        .events = (short)(also_write ? POLLIN | POLLOUT : POLLIN)};
    for (;;) {
        int64_t left = deadline_ms ? deadline_ms - clock_mono_ms() : -1;
        if (deadline_ms && left <= 0)
            return -1;
        int n = poll(&fd, 1, (int)left);
        if (n > 0)
            return fd.revents & POLLIN && !PQconsumeInput(p->c) ? -1 : 0;
        if (n < 0 && errno != EINTR)
            return -1;
    }
}

static bool is_copy(const PGresult *r) {
    ExecStatusType status = PQresultStatus(r);
    return status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH;
}

static int receive_all(pg *p, int64_t deadline_ms, PGresult **kept) {
    for (int more; (more = PQflush(p->c)) != 0;)
        if (more < 0 || wait_socket(p, true, deadline_ms))
            return -1;
    for (;;) {
        while (PQisBusy(p->c))
            if (wait_socket(p, false, deadline_ms))
                return -1;
        PGresult *r = PQgetResult(p->c);
        if (!r)
            return 0;
        if (is_copy(r)) {
            PQclear(*kept);
            *kept = r; // libpq would return it for ever
            return 0;
        }
        if (*kept && PQresultStatus(*kept) == PGRES_FATAL_ERROR) {
            PQclear(r); // the first error is the one to tell
        } else {
            PQclear(*kept);
            *kept = r;
        }
    }
}

// States that say "not now" rather than "not this statement".
static bool is_server_trouble(const char *sqlstate) {
    static const char *const classes[] = {"08", "53", "57P", "58", "25006"};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (strncmp(sqlstate, classes[i], strlen(classes[i])) == 0)
            return true;
    return false;
}

static int refused(pg *p, const PGresult *r, err *e) {
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    const char *why = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    snprintf(p->sqlstate, sizeof p->sqlstate, "%s", state ? state : "");
    if (is_copy(r)) {
        pg_drop(p);
        return err_set(e, ERR_INTERNAL, NULL, "COPY is not possible through this interface");
    }
    why = why ? why : PQresultErrorMessage(r);
    if (!state || is_server_trouble(state)) {
        unavailable(e, "cannot serve", why);
        pg_drop(p); // another connection may find a healthy server
        return -1;
    }
    return err_set(e, ERR_INTERNAL, NULL, "PostgreSQL refused a statement: %s (%s)", why, state);
}

// Takes over what was sent (sent: libpq's answer to the sending).
static int finish(pg *p, int sent, int limit_ms, pg_result **out, err *e) {
    int64_t deadline_ms = limit_ms > 0 ? clock_mono_ms() + limit_ms : 0;
    PGresult *r = NULL;
    if (!sent || receive_all(p, deadline_ms, &r) || !r) {
        bool is_late = deadline_ms && clock_mono_ms() >= deadline_ms;
        const char *why = PQerrorMessage(p->c);
        unavailable(e, "was lost", is_late ? "no answer in time" : *why ? why : "no answer");
        PQclear(r);
        pg_drop(p);
        return -1;
    }
    ExecStatusType status = PQresultStatus(r);
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_EMPTY_QUERY) {
        int rc = refused(p, r, e);
        PQclear(r);
        return rc;
    }
    if (out)
        *out = (pg_result *)r;
    else
        PQclear(r);
    return 0;
}

int pg_query(pg *p, const char *sql, int n, const char *const *params, pg_result **out, err *e) {
    p->sqlstate[0] = '\0';
    if (pg_ensure(p, e))
        return -1;
    int sent = PQsendQueryParams(p->c, sql, n, NULL, params, NULL, NULL, 0);
    return finish(p, sent, p->limit_ms, out, e);
}

int pg_exec(pg *p, const char *sql, err *e) {
    p->sqlstate[0] = '\0';
    if (pg_ensure(p, e))
        return -1;
    return finish(p, PQsendQuery(p->c, sql), 0, NULL, e);
}

const char *pg_sqlstate(const pg *p) { return p->sqlstate; }

// ---- results

static const PGresult *rows_of(const pg_result *r) { return (const PGresult *)r; }

int pg_rows(const pg_result *r) { return PQntuples(rows_of(r)); }

int pg_affected(const pg_result *r) { return atoi(PQcmdTuples((PGresult *)(uintptr_t)r)); }

const char *pg_text(const pg_result *r, int row, int column) {
    return PQgetisnull(rows_of(r), row, column) ? NULL : PQgetvalue(rows_of(r), row, column);
}

long long pg_int(const pg_result *r, int row, int column) {
    const char *text = pg_text(r, row, column);
    return text ? atoll(text) : 0;
}

void pg_result_free(pg_result *r) { PQclear((PGresult *)r); }
