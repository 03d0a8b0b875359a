// The bytes of answers: events of a stream and whole bodies, against goldens.
#include "server/openai_answer.h"
#include "tests/support/vocabulary.h"
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

// A vocabulary of the 256 bytes, so that a token is a byte; and one control token, 256.
static vocabulary words;

static int open_words(void **state) {
    (void)state;
    static const char *const none[] = {NULL}, *const control[] = {"<|end|>", NULL};
    gguf_builder b;
    err e = {0};
    gguf_builder_init(&b);
    builder_vocabulary(&b, &(vocabulary_parts){.pre = "gpt-2",
                                               .merged = none,
                                               .control = control,
                                               .user_defined = none,
                                               .merges = none});
    int rc = vocabulary_build(&words, &b, &e);
    gguf_builder_release(&b);
    if (rc)
        print_error("%s\n", e.message);
    return rc;
}

static int close_words(void **state) {
    (void)state;
    vocabulary_close(&words);
    return 0;
}

static answer_options chat_options(void) {
    return (answer_options){.is_chat = true,
                            .id = "ID",
                            .model = "m",
                            .fingerprint = "f",
                            .created = 7,
                            .n_prompts = 1,
                            .n_choices = 1,
                            .tokenizer = words.tokens};
}

static reply_frame text_frame(const char *text, reply_token *tokens, int n) {
    return (reply_frame){.text = text, .n_text = strlen(text), .tokens = tokens, .n_tokens = n};
}

static reply_token byte_token(char c) { return (reply_token){.id = (uint8_t)c, .logprob = NAN}; }

#define CHAT_HEAD                                                                                  \
    "data: {\"id\":\"chatcmpl-ID\",\"object\":\"chat.completion.chunk\",\"created\":7,"            \
    "\"model\":\"m\",\"system_fingerprint\":\"f\",\"choices\":["
#define TEXT_HEAD                                                                                  \
    "data: {\"id\":\"cmpl-ID\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\","      \
    "\"system_fingerprint\":\"f\",\"choices\":["

static void a_chat_stream_tells_role_text_reason_usage_and_done(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.has_usage = true;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_token t[] = {byte_token('h'), byte_token('i')};
    reply_frame first = text_frame("h", t, 1), second = text_frame("\"i\n", t + 1, 1);
    assert_int_equal(answer_take(a, 0, &first, &b), 1);
    assert_int_equal(answer_take(a, 0, &second, &b), 2);
    answer_put_finish(a, 0, FINISH_LENGTH, NULL, &b);
    answer_put_done(
        a, &(answer_usage){.prompt_tokens = 5, .cached_tokens = 4, .completion_tokens = 2}, &b);
    assert_string_equal(
        b.data, CHAT_HEAD
        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\","
        "\"refusal\":null},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n" CHAT_HEAD
        "{\"index\":0,\"delta\":{\"content\":\"h\"},\"logprobs\":null,"
        "\"finish_reason\":null}],\"usage\":null}\n\n" CHAT_HEAD
        "{\"index\":0,\"delta\":{\"content\":\"\\\"i\\n\"},\"logprobs\":null,"
        "\"finish_reason\":null}],\"usage\":null}\n\n" CHAT_HEAD
        "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}],"
        "\"usage\":null}\n\n" CHAT_HEAD
        "],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,"
        "\"prompt_tokens_details\":{\"cached_tokens\":4},"
        "\"completion_tokens_details\":{\"reasoning_tokens\":0}}}\n\n"
        "data: [DONE]\n\n");
    answer_free(a);
    buf_release(&b);
}

static void without_usage_no_event_speaks_of_it(void **state) {
    (void)state;
    answer_options o = chat_options();
    answer *a = answer_new(&o);
    buf b = {0};
    answer_put_finish(a, 0, FINISH_STOP, NULL, &b);
    answer_put_done(a, &(answer_usage){0}, &b);
    assert_null(strstr(b.data, "usage"));
    assert_non_null(strstr(b.data, "\"role\":\"assistant\"")); // an empty answer has a role too
    answer_free(a);
    buf_release(&b);
}

static void a_legacy_stream_always_carries_text(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.is_chat = false;
    o.n_choices = 2;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_token t = byte_token('x');
    reply_frame f = text_frame("", &t, 1);
    answer_take(a, 1, &f, &b);
    answer_put_finish(a, 1, FINISH_STOP, "tokens per day", &b);
    assert_string_equal(b.data, TEXT_HEAD "{\"index\":1,\"text\":\"\",\"logprobs\":null,"
                                          "\"finish_reason\":null}]}\n\n" TEXT_HEAD
                                          "{\"index\":1,\"text\":\"\",\"logprobs\":null,"
                                          "\"finish_reason\":\"stop\"}],\"metadata\":{"
                                          "\"x-tiergate-limited-by\":\"tokens per day\"}}\n\n");
    answer_free(a);
    buf_release(&b);
}

static void chat_logprobs_hold_bytes_and_alternatives(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.has_logprobs = true;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_logprob top[] = {{0xe2, -0.5f}, {'b', -INFINITY}};
    reply_token t = {.id = 0xe2, .logprob = -0.5f, .n_top = 2, .top = top};
    reply_frame f = text_frame("", &t, 1);
    answer_take(a, 0, &f, &b);
    const char *second = strstr(b.data, "\n\n") + 2;
    assert_string_equal(second,
                        CHAT_HEAD "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":{"
                                  "\"content\":[{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.5,"
                                  "\"bytes\":[226],\"top_logprobs\":[{\"token\":\"\xef\xbf\xbd\","
                                  "\"logprob\":-0.5,\"bytes\":[226]},{\"token\":\"b\",\"logprob\":"
                                  "-9999,\"bytes\":[98]}]}],\"refusal\":null},"
                                  "\"finish_reason\":null}]}\n\n");
    answer_free(a);
    buf_release(&b);
}

static const char *member(const json_t *list, size_t i) {
    return json_string_value(json_array_get(list, i));
}

static void an_echo_with_logprobs_has_one_list_for_prompt_and_answer(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.is_chat = false;
    o.has_logprobs = true;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_logprob top[] = {{'z', -0.25f}};
    reply_token prompt[] = {byte_token(0xc3 - 256),
                            {.id = 0xa9, .logprob = -1, .n_top = 1, .top = top}};
    reply_token t[] = {{.id = 'x', .logprob = -2, .n_top = 1, .top = top},
                       {.id = 256, .logprob = -3, .n_top = 0}};
    answer_echo(a, 0, "\xc3\xa9", 2);
    reply_frame p1 = {.tokens = prompt, .n_tokens = 1, .from = 0, .flags = REPLY_PROMPT};
    reply_frame p2 = {.tokens = prompt, .n_tokens = 2, .from = 0, .flags = REPLY_PROMPT};
    answer_take_prompt(a, 0, &p1);
    answer_take_prompt(a, 0, &p2); // another attempt begins at 0 again
    assert_int_equal(answer_prompt_taken(a, 0), 2);
    reply_frame f = text_frame("x", t, 2);
    answer_take(a, 0, &f, NULL);
    answer_put_body(a, (reply_finish[]){FINISH_STOP}, &(answer_usage){2, 0, 2}, NULL, &b);
    json_t *body = json_loads(b.data, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(body);
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    const json_t *l = json_object_get(choice, "logprobs");
    assert_string_equal(json_string_value(json_object_get(choice, "text")), "\xc3\xa9x");
    const json_t *tokens = json_object_get(l, "tokens"),
                 *values = json_object_get(l, "token_logprobs");
    const json_t *tops = json_object_get(l, "top_logprobs"),
                 *at = json_object_get(l, "text_offset");
    assert_string_equal(member(tokens, 0), "bytes:\\xc3");
    assert_string_equal(member(tokens, 1), "bytes:\\xa9");
    assert_string_equal(member(tokens, 2), "x");
    assert_string_equal(member(tokens, 3), "<|end|>");
    assert_true(json_is_null(json_array_get(values, 0)));
    assert_true(json_is_null(json_array_get(tops, 0)));
    assert_true(json_number_value(json_array_get(values, 3)) == -3);
    // the token itself stands beside the alternatives
    assert_int_equal(json_object_size(json_array_get(tops, 2)), 2);
    assert_int_equal(json_object_size(json_array_get(tops, 3)), 1);
    const int offsets[] = {0, 1, 1, 2}; // a character's second byte adds none
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(json_integer_value(json_array_get(at, i)), offsets[i]);
    json_decref(body);
    answer_free(a);
    buf_release(&b);
}

static void a_streamed_echo_comes_first(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.is_chat = false;
    o.n_prompts = 2;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_token t = byte_token('x');
    reply_frame f = text_frame("x", &t, 1);
    answer_echo(a, 1, "say ", 4);
    answer_take(a, 1, &f, &b);
    assert_string_equal(b.data, TEXT_HEAD "{\"index\":1,\"text\":\"say \",\"logprobs\":null,"
                                          "\"finish_reason\":null}]}\n\n" TEXT_HEAD
                                          "{\"index\":1,\"text\":\"x\",\"logprobs\":null,"
                                          "\"finish_reason\":null}]}\n\n");
    answer_free(a);
    buf_release(&b);
}

static void a_chat_body_holds_every_choice(void **state) {
    (void)state;
    answer_options o = chat_options();
    o.n_choices = 2;
    o.has_tier = true;
    answer *a = answer_new(&o);
    buf b = {0};
    reply_token t = byte_token('x');
    reply_frame x = text_frame("x", &t, 1), y = text_frame("y", &t, 1);
    answer_take(a, 0, &x, NULL);
    answer_take(a, 1, &y, NULL);
    answer_take(a, 0, &y, NULL);
    answer_put_body(a, (reply_finish[]){FINISH_STOP, FINISH_LENGTH}, &(answer_usage){3, 1, 3}, NULL,
                    &b);
    assert_string_equal(
        b.data,
        "{\"id\":\"chatcmpl-ID\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\","
        "\"system_fingerprint\":\"f\",\"service_tier\":\"default\",\"choices\":["
        "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"xy\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"},"
        "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"y\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":\"length\"}],"
        "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":3,\"total_tokens\":6,"
        "\"prompt_tokens_details\":{\"cached_tokens\":1},"
        "\"completion_tokens_details\":{\"reasoning_tokens\":0}}}");
    answer_free(a);
    buf_release(&b);
}

static void an_error_event_is_one_line_of_data(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    err_set(&e, ERR_POISON, NULL, "three workers died");
    answer_put_error_event(&e, &b);
    assert_string_equal(b.data,
                        "data: {\"error\":{\"message\":\"three workers died\",\"type\":"
                        "\"server_error\",\"param\":null,\"code\":\"poison_request\"}}\n\n");
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_stream_tells_role_text_reason_usage_and_done),
        cmocka_unit_test(without_usage_no_event_speaks_of_it),
        cmocka_unit_test(a_legacy_stream_always_carries_text),
        cmocka_unit_test(chat_logprobs_hold_bytes_and_alternatives),
        cmocka_unit_test(an_echo_with_logprobs_has_one_list_for_prompt_and_answer),
        cmocka_unit_test(a_streamed_echo_comes_first),
        cmocka_unit_test(a_chat_body_holds_every_choice),
        cmocka_unit_test(an_error_event_is_one_line_of_data),
    };
    return cmocka_run_group_tests(tests, open_words, close_words);
}
