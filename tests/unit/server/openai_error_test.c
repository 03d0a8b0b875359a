// Errors as clients see them, and the route table.
#include "server/openai_error.h"
#include "server/routes.h"
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

typedef struct told {
    err_code code;
    int status;
    const char *name;
    bool is_permanent, has_retry;
} told;

static const told table[] = {
    {ERR_INVALID, 400, "invalid_request", false, false},
    {ERR_UNSUPPORTED, 400, "unsupported_parameter", false, false},
    {ERR_NO_FIM, 400, "fim_not_supported", false, false},
    {ERR_CONTEXT_LENGTH, 400, "context_length_exceeded", false, false},
    {ERR_KEY, 401, "invalid_api_key", false, false},
    {ERR_MODEL_DENIED, 403, "model_not_allowed", false, false},
    {ERR_PERMISSION, 403, "permission_denied", false, false},
    {ERR_MODEL_UNKNOWN, 404, "model_not_found", false, false},
    {ERR_NOT_FOUND, 404, "not_found", false, false},
    {ERR_METHOD, 405, "method_not_allowed", false, false},
    {ERR_IN_PROGRESS, 409, "request_in_progress", false, true},
    {ERR_SUPERSEDED, 409, "superseded", true, false},
    {ERR_IDEM_MISMATCH, 422, "idempotency_mismatch", false, false},
    {ERR_TOO_LARGE, 413, "request_too_large", false, false},
    {ERR_RATE, 429, "rate_limit_exceeded", false, true},
    {ERR_QUOTA, 429, "insufficient_quota", true, false},
    {ERR_CANCELLED, 499, "client_closed_request", true, false},
    {ERR_INTERNAL, 500, "server_error", false, false},
    {ERR_POISON, 500, "poison_request", true, false},
    {ERR_OVERLOADED, 503, "server_is_overloaded", false, true},
    {ERR_DEPENDENCY, 503, "dependency_unavailable", false, true},
    {ERR_DEADLINE, 504, "deadline_exceeded", true, false},
    {ERR_IO, 500, "server_error", false, false},
    {ERR_FORMAT, 500, "server_error", false, false},
};

static void every_code_has_its_status_and_word(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        err e = {0};
        err_set(&e, table[i].code, NULL, "x");
        openai_error o = openai_error_of(&e);
        assert_int_equal(o.status, table[i].status);
        assert_string_equal(o.code, table[i].name);
        assert_int_equal(o.is_permanent, table[i].is_permanent);
        assert_int_equal(o.retry_ms > 0, table[i].has_retry);
    }
}

static void a_retry_time_of_the_error_wins(void **state) {
    (void)state;
    err e = {.code = ERR_OVERLOADED, .retry_ms = 2500};
    assert_int_equal(openai_error_of(&e).retry_ms, 2500);
    e.code = ERR_QUOTA; // waiting does not help
    assert_int_equal(openai_error_of(&e).retry_ms, 0);
}

static void a_body_has_all_four_members(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    err_set(&e, ERR_INVALID, "messages[0].content", "a \"quoted\" word");
    openai_error_body(&e, &b);
    assert_string_equal(b.data, "{\"error\":{\"message\":\"a \\\"quoted\\\" word\",\"type\":"
                                "\"invalid_request_error\",\"param\":\"messages[0].content\","
                                "\"code\":\"invalid_request\"}}");
    buf_clear(&b);
    err_set(&e, ERR_KEY, NULL, "no");
    openai_error_body(&e, &b);
    assert_non_null(strstr(b.data, "\"param\":null"));
    buf_release(&b);
}

static void texts_of_ours_stay_inside(void **state) {
    (void)state;
    static const err_code inner[] = {ERR_INTERNAL, ERR_IO, ERR_FORMAT};
    for (size_t i = 0; i < sizeof inner / sizeof *inner; i++) {
        buf b = {0};
        err e = {0};
        err_set(&e, inner[i], NULL, "/var/lib/secret: permission denied");
        openai_error_body(&e, &b);
        assert_null(strstr(b.data, "secret"));
        buf_release(&b);
    }
}

static void errors_of_the_transport_are_json_too(void **state) {
    (void)state;
    static const int statuses[] = {400, 408, 413, 417, 431, 500, 503};
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        buf b = {0};
        openai_error_transport(statuses[i], NULL, &b);
        json_t *v = json_loads(b.data, JSON_REJECT_DUPLICATES, NULL);
        json_t *error = json_object_get(v, "error");
        assert_int_equal(json_object_size(error), 4);
        assert_true(json_is_string(json_object_get(error, "code")));
        json_decref(v);
        buf_release(&b);
    }
    buf b = {0};
    err e = {0};
    err_set(&e, ERR_INVALID, "content-length", "two lengths");
    openai_error_transport(400, &e, &b);
    assert_non_null(strstr(b.data, "two lengths"));
    assert_non_null(strstr(b.data, "\"param\":\"content-length\""));
    buf_release(&b);
}

static void paths_find_their_routes(void **state) {
    (void)state;
    static const struct {
        const char *method, *path, *name, *rest;
        err_code code;
    } ways[] = {
        {"GET", "/v1/models", "models", "", ERR_NONE},
        {"HEAD", "/v1/models", "models", "", ERR_NONE},
        {"GET", "/v1/models/a", "model", "a", ERR_NONE},
        {"GET", "/v1/models/org/a", "model", "org/a", ERR_NONE},
        {"GET", "/v1/models/", NULL, "", ERR_NOT_FOUND},
        {"POST", "/v1/chat/completions", "chat", "", ERR_NONE},
        {"POST", "/v1/completions", "completions", "", ERR_NONE},
        {"POST", "/v1/tokenize", "tokenize", "", ERR_NONE},
        {"POST", "/v1/detokenize", "detokenize", "", ERR_NONE},
        {"GET", "/v1/chat/completions", NULL, "", ERR_METHOD},
        {"HEAD", "/v1/completions", NULL, "", ERR_METHOD},
        {"POST", "/v1/models", NULL, "", ERR_METHOD},
        {"post", "/v1/completions", NULL, "", ERR_METHOD},
        {"POST", "/v1/completions/", NULL, "", ERR_NOT_FOUND},
        {"POST", "/V1/completions", NULL, "", ERR_NOT_FOUND},
        {"GET", "/", NULL, "", ERR_NOT_FOUND},
        {"GET", "", NULL, "", ERR_NOT_FOUND},
        {"GET", "/v1", NULL, "", ERR_NOT_FOUND},
        {"GET", "*", NULL, "", ERR_NOT_FOUND},
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *rest;
        char allow[64] = "";
        err e = {0};
        const route *r = route_find(ways[i].method, ways[i].path, &rest, allow, &e);
        assert_int_equal(e.code, ways[i].code);
        assert_int_equal(r != NULL, ways[i].name != NULL);
        if (r) {
            assert_string_equal(r->name, ways[i].name);
            assert_string_equal(rest, ways[i].rest);
        }
        assert_int_equal(allow[0] != 0, e.code == ERR_METHOD);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_its_status_and_word),
        cmocka_unit_test(a_retry_time_of_the_error_wins),
        cmocka_unit_test(a_body_has_all_four_members),
        cmocka_unit_test(texts_of_ours_stay_inside),
        cmocka_unit_test(errors_of_the_transport_are_json_too),
        cmocka_unit_test(paths_find_their_routes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
