// Bodies of requests: what is accepted means what the client said; what is refused names the
// member.
#include "server/openai_request.h"
#include "server/openai_error.h"
#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const openai_limits limits = {
    .body_bytes = 1 << 20, .json_depth = 64, .max_messages = 4, .max_choices = 8};

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define CHAT(more) OPENAI_CHAT, "{\"model\":\"m\"," HELLO more "}"
#define MESSAGES(list) OPENAI_CHAT, "{\"model\":\"m\",\"messages\":" list "}"
#define MESSAGE(members) MESSAGES("[{" members "}]")
#define CONTENT(value) MESSAGE("\"role\":\"user\",\"content\":" value)
#define TEXT(more) OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":\"hi\"" more "}"
#define PROMPT(value) OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":" value "}"
#define TOKENIZE(members) OPENAI_TOKENIZE, "{\"model\":\"m\"," members "}"
#define DETOKENIZE(members) OPENAI_DETOKENIZE, "{\"model\":\"m\"," members "}"
#define INVALID "invalid_request"
#define UNSUPPORTED "unsupported_parameter"

typedef struct bad {
    openai_kind kind;
    const char *body, *code, *param;
} bad;

static const bad bads[] = {
    // not a JSON object
    {OPENAI_CHAT, "", INVALID, ""},
    {OPENAI_CHAT, "   ", INVALID, ""},
    {OPENAI_CHAT, "null", INVALID, ""},
    {OPENAI_CHAT, "[]", INVALID, ""},
    {OPENAI_CHAT, "\"text\"", INVALID, ""},
    {OPENAI_CHAT, "1", INVALID, ""},
    {OPENAI_CHAT, "{", INVALID, ""},
    {OPENAI_CHAT, "{}}", INVALID, ""},
    {OPENAI_CHAT, "{} {}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\"}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":\"m\",}", INVALID, ""},
    {OPENAI_CHAT, "{'model':'m'}", INVALID, ""},
    {OPENAI_CHAT, "{model:1}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":NaN}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":Infinity}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":01}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":\"m\x01\"}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":\"\\x\"}", INVALID, ""},
    {OPENAI_CHAT, "{\"model\":\"\\u12\"}", INVALID, ""},
    {OPENAI_CHAT, "model=m&prompt=x", INVALID, ""},
    {OPENAI_CHAT, "\xef\xbb\xbf{}", INVALID, ""}, // a byte order mark
    // names given twice
    {OPENAI_CHAT, "{\"model\":\"m\",\"model\":\"n\"}", INVALID, "model"},
    {CHAT(",\"n\":1,\"n\":2"), INVALID, "n"},
    {MESSAGE("\"role\":\"user\",\"role\":\"system\",\"content\":\"x\""), INVALID,
     "messages[0].role"},
    {MESSAGES("[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"x\","
              "\"content\":\"y\"}]"),
     INVALID, "messages[1].content"},
    {CHAT(",\"logit_bias\":{\"1\":1,\"1\":2}"), INVALID, "logit_bias.1"},
    {CHAT(",\"stream_options\":{\"include_usage\":true,\"include_usage\":false}"), INVALID,
     "stream_options.include_usage"},
    // characters
    {CONTENT("\"a\\ud800b\""), INVALID, "messages[0].content"},
    {CONTENT("\"a\\udc00\""), INVALID, "messages[0].content"},
    {CONTENT("\"\\ud800\\ud800\""), INVALID, "messages[0].content"},
    {CONTENT("\"\\ud83d\""), INVALID, "messages[0].content"},
    {CONTENT("\"\\ude00\\ud83d\""), INVALID, "messages[0].content"},
    {CONTENT("\"a\\u0000b\""), INVALID, "messages[0].content"},
    {CONTENT("\"\xff\""), INVALID, "messages[0].content"},
    {CONTENT("\"\xc0\x80\""), INVALID, "messages[0].content"},
    {CONTENT("\"\xed\xa0\x80\""), INVALID, "messages[0].content"},
    {CONTENT("\"\xf4\x90\x80\x80\""), INVALID, "messages[0].content"},
    {CONTENT("\"\xe2\x82\""), INVALID, "messages[0].content"},
    {CONTENT("\"\x80\""), INVALID, "messages[0].content"},
    {CHAT(",\"stop\":[\"a\",\"\\udfff\"]"), INVALID, "stop[1]"},
    {CHAT(",\"user\":\"\\u0000\""), INVALID, "user"},
    {CHAT(",\"metadata\":{\"a\":\"\xfe\"}"), INVALID, "metadata.a"},
    {PROMPT("[\"x\",\"\\ud800\"]"), INVALID, "prompt[1]"},
    // numbers that no number type holds
    {CHAT(",\"seed\":99999999999999999999"), INVALID, "seed"},
    {CHAT(",\"seed\":-99999999999999999999"), INVALID, "seed"},
    {CHAT(",\"temperature\":1e999"), INVALID, "temperature"},
    {PROMPT("[1,99999999999999999999]"), INVALID, "prompt[1]"},
    // model
    {OPENAI_CHAT, "{" HELLO "}", INVALID, "model"},
    {OPENAI_CHAT, "{\"model\":null," HELLO "}", INVALID, "model"},
    {OPENAI_CHAT, "{\"model\":\"\"," HELLO "}", INVALID, "model"},
    {OPENAI_CHAT, "{\"model\":7," HELLO "}", INVALID, "model"},
    {OPENAI_CHAT, "{\"model\":[\"m\"]," HELLO "}", INVALID, "model"},
    {OPENAI_COMPLETION, "{\"prompt\":\"x\"}", INVALID, "model"},
    {OPENAI_TOKENIZE, "{\"prompt\":\"x\"}", INVALID, "model"},
    {OPENAI_DETOKENIZE, "{\"tokens\":[1]}", INVALID, "model"},
    // messages
    {OPENAI_CHAT, "{\"model\":\"m\"}", INVALID, "messages"},
    {MESSAGES("null"), INVALID, "messages"},
    {MESSAGES("[]"), INVALID, "messages"},
    {MESSAGES("{}"), INVALID, "messages"},
    {MESSAGES("\"hi\""), INVALID, "messages"},
    {MESSAGES("[\"hi\"]"), INVALID, "messages[0]"},
    {MESSAGES("[null]"), INVALID, "messages[0]"},
    {MESSAGES("[[]]"), INVALID, "messages[0]"},
    {MESSAGES("[{},{},{},{},{}]"), INVALID, "messages"},
    {MESSAGES("[{}]"), INVALID, "messages[0].role"},
    {MESSAGE("\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":null,\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":1,\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":\"\",\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":\"User\",\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":\"function\",\"content\":\"x\""), INVALID, "messages[0].role"},
    {MESSAGE("\"role\":\"user\""), INVALID, "messages[0].content"},
    {MESSAGE("\"role\":\"assistant\",\"content\":null"), INVALID, "messages[0].content"},
    {CONTENT("null"), INVALID, "messages[0].content"},
    {CONTENT("5"), INVALID, "messages[0].content"},
    {CONTENT("true"), INVALID, "messages[0].content"},
    {CONTENT("{}"), INVALID, "messages[0].content"},
    {CONTENT("[]"), INVALID, "messages[0].content"},
    {CONTENT("[\"x\"]"), INVALID, "messages[0].content[0]"},
    {CONTENT("[null]"), INVALID, "messages[0].content[0]"},
    {CONTENT("[{}]"), INVALID, "messages[0].content[0].type"},
    {CONTENT("[{\"type\":1}]"), INVALID, "messages[0].content[0].type"},
    {CONTENT("[{\"type\":\"text\"}]"), INVALID, "messages[0].content[0].text"},
    {CONTENT("[{\"type\":\"text\",\"text\":null}]"), INVALID, "messages[0].content[0].text"},
    {CONTENT("[{\"type\":\"text\",\"text\":[]}]"), INVALID, "messages[0].content[0].text"},
    {CONTENT("[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\",\"image_url\":{}}]"),
     UNSUPPORTED, "messages[0].content[1].type"},
    {CONTENT("[{\"type\":\"input_audio\"}]"), UNSUPPORTED, "messages[0].content[0].type"},
    {CONTENT("[{\"type\":\"refusal\",\"refusal\":\"no\"}]"), UNSUPPORTED,
     "messages[0].content[0].type"},
    {CONTENT("[{\"type\":\"text\",\"text\":\"a\",\"cache_control\":{}}]"), UNSUPPORTED,
     "messages[0].content[0].cache_control"},
    {MESSAGE("\"role\":\"user\",\"content\":\"x\",\"name\":\"bob\""), UNSUPPORTED,
     "messages[0].name"},
    {MESSAGE("\"role\":\"user\",\"content\":\"x\",\"weight\":1"), UNSUPPORTED,
     "messages[0].weight"},
    {MESSAGE("\"role\":\"user\",\"content\":\"x\",\"tool_call_id\":\"1\""), INVALID,
     "messages[0].tool_call_id"},
    {MESSAGE("\"role\":\"tool\",\"content\":\"x\""), INVALID, "messages[0].tool_call_id"},
    {MESSAGE("\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":4"), INVALID,
     "messages[0].tool_call_id"},
    {MESSAGE("\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]"), UNSUPPORTED,
     "messages[0].tool_calls"},
    {MESSAGE("\"role\":\"assistant\",\"content\":\"x\",\"function_call\":{}"), UNSUPPORTED,
     "messages[0].function_call"},
    {MESSAGE("\"role\":\"assistant\",\"content\":\"x\",\"refusal\":\"no\""), UNSUPPORTED,
     "messages[0].refusal"},
    {MESSAGE("\"role\":\"assistant\",\"content\":\"x\",\"audio\":{\"id\":\"a\"}"), UNSUPPORTED,
     "messages[0].audio"},
    // prompt
    {OPENAI_COMPLETION, "{\"model\":\"m\"}", INVALID, "prompt"},
    {PROMPT("null"), INVALID, "prompt"},
    {PROMPT("1"), INVALID, "prompt"},
    {PROMPT("{}"), INVALID, "prompt"},
    {PROMPT("[]"), INVALID, "prompt"},
    {PROMPT("[[]]"), INVALID, "prompt[0]"},
    {PROMPT("[null]"), INVALID, "prompt[0]"},
    {PROMPT("[{}]"), INVALID, "prompt[0]"},
    {PROMPT("[true]"), INVALID, "prompt[0]"},
    {PROMPT("[1.5]"), INVALID, "prompt[0]"},
    {PROMPT("[1,\"a\"]"), INVALID, "prompt[1]"},
    {PROMPT("[1,2.5]"), INVALID, "prompt[1]"},
    {PROMPT("[-1]"), INVALID, "prompt[0]"},
    {PROMPT("[2147483648]"), INVALID, "prompt[0]"},
    {PROMPT("[\"a\",1]"), INVALID, "prompt[1]"},
    {PROMPT("[\"a\",null]"), INVALID, "prompt[1]"},
    {PROMPT("[[1],\"a\"]"), INVALID, "prompt[1]"},
    {PROMPT("[[1],[2,-3]]"), INVALID, "prompt[1][1]"},
    {PROMPT("[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]"), INVALID, "prompt"},
    {PROMPT("[\"1\",\"2\",\"3\"],\"n\":3"), INVALID, "prompt"},
    // numbers
    {CHAT(",\"n\":0"), INVALID, "n"},
    {CHAT(",\"n\":-1"), INVALID, "n"},
    {CHAT(",\"n\":9"), INVALID, "n"},
    {CHAT(",\"n\":1.5"), INVALID, "n"},
    {CHAT(",\"n\":\"2\""), INVALID, "n"},
    {CHAT(",\"n\":true"), INVALID, "n"},
    {CHAT(",\"n\":[2]"), INVALID, "n"},
    {CHAT(",\"max_tokens\":0"), INVALID, "max_tokens"},
    {CHAT(",\"max_tokens\":-5"), INVALID, "max_tokens"},
    {CHAT(",\"max_tokens\":1.5"), INVALID, "max_tokens"},
    {CHAT(",\"max_tokens\":\"5\""), INVALID, "max_tokens"},
    {CHAT(",\"max_tokens\":9223372036854775807"), INVALID, "max_tokens"},
    {CHAT(",\"max_completion_tokens\":0"), INVALID, "max_completion_tokens"},
    {CHAT(",\"max_completion_tokens\":\"x\""), INVALID, "max_completion_tokens"},
    {CHAT(",\"max_tokens\":5,\"max_completion_tokens\":6"), INVALID, "max_completion_tokens"},
    {TEXT(",\"max_completion_tokens\":5"), UNSUPPORTED, "max_completion_tokens"},
    {TEXT(",\"max_tokens\":0"), INVALID, "max_tokens"},
    {CHAT(",\"temperature\":-0.1"), INVALID, "temperature"},
    {CHAT(",\"temperature\":2.01"), INVALID, "temperature"},
    {CHAT(",\"temperature\":\"1\""), INVALID, "temperature"},
    {CHAT(",\"temperature\":false"), INVALID, "temperature"},
    {CHAT(",\"top_p\":-0.1"), INVALID, "top_p"},
    {CHAT(",\"top_p\":1.1"), INVALID, "top_p"},
    {CHAT(",\"top_p\":{}"), INVALID, "top_p"},
    {CHAT(",\"top_k\":-2"), INVALID, "top_k"},
    {CHAT(",\"top_k\":0.5"), INVALID, "top_k"},
    {CHAT(",\"top_k\":99999999"), INVALID, "top_k"},
    {CHAT(",\"min_p\":-1"), INVALID, "min_p"},
    {CHAT(",\"min_p\":1"), INVALID, "min_p"},
    {CHAT(",\"min_p\":1.5"), INVALID, "min_p"},
    {CHAT(",\"presence_penalty\":2.5"), INVALID, "presence_penalty"},
    {CHAT(",\"presence_penalty\":\"a\""), INVALID, "presence_penalty"},
    {CHAT(",\"frequency_penalty\":-2.5"), INVALID, "frequency_penalty"},
    {CHAT(",\"frequency_penalty\":[]"), INVALID, "frequency_penalty"},
    {CHAT(",\"repetition_penalty\":0"), INVALID, "repetition_penalty"},
    {CHAT(",\"repetition_penalty\":-1"), INVALID, "repetition_penalty"},
    {CHAT(",\"repetition_penalty\":11"), INVALID, "repetition_penalty"},
    {CHAT(",\"seed\":1.0"), INVALID, "seed"},
    {CHAT(",\"seed\":\"1\""), INVALID, "seed"},
    {CHAT(",\"seed\":true"), INVALID, "seed"},
    // stop
    {CHAT(",\"stop\":1"), INVALID, "stop"},
    {CHAT(",\"stop\":{}"), INVALID, "stop"},
    {CHAT(",\"stop\":\"\""), INVALID, "stop"},
    {CHAT(",\"stop\":[\"a\",\"\"]"), INVALID, "stop[1]"},
    {CHAT(",\"stop\":[1]"), INVALID, "stop[0]"},
    {CHAT(",\"stop\":[null]"), INVALID, "stop[0]"},
    {CHAT(",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\"]"), INVALID, "stop"},
    // logit_bias
    {CHAT(",\"logit_bias\":[]"), INVALID, "logit_bias"},
    {CHAT(",\"logit_bias\":1"), INVALID, "logit_bias"},
    {CHAT(",\"logit_bias\":{\"a\":1}"), INVALID, "logit_bias.a"},
    {CHAT(",\"logit_bias\":{\"-1\":1}"), INVALID, "logit_bias.-1"},
    {CHAT(",\"logit_bias\":{\"01\":1}"), INVALID, "logit_bias.01"},
    {CHAT(",\"logit_bias\":{\"1.5\":1}"), INVALID, "logit_bias.1.5"},
    {CHAT(",\"logit_bias\":{\" 1\":1}"), INVALID, "logit_bias. 1"},
    {CHAT(",\"logit_bias\":{\"9999999999\":1}"), INVALID, "logit_bias.9999999999"},
    {CHAT(",\"logit_bias\":{\"1\":101}"), INVALID, "logit_bias.1"},
    {CHAT(",\"logit_bias\":{\"1\":-101}"), INVALID, "logit_bias.1"},
    {CHAT(",\"logit_bias\":{\"1\":\"5\"}"), INVALID, "logit_bias.1"},
    {CHAT(",\"logit_bias\":{\"1\":null}"), INVALID, "logit_bias.1"},
    // logprobs
    {CHAT(",\"logprobs\":3"), INVALID, "logprobs"},
    {CHAT(",\"logprobs\":\"true\""), INVALID, "logprobs"},
    {CHAT(",\"top_logprobs\":2"), INVALID, "top_logprobs"},
    {CHAT(",\"logprobs\":false,\"top_logprobs\":2"), INVALID, "top_logprobs"},
    {CHAT(",\"logprobs\":true,\"top_logprobs\":21"), INVALID, "top_logprobs"},
    {CHAT(",\"logprobs\":true,\"top_logprobs\":-1"), INVALID, "top_logprobs"},
    {TEXT(",\"logprobs\":true"), INVALID, "logprobs"},
    {TEXT(",\"logprobs\":6"), INVALID, "logprobs"},
    {TEXT(",\"logprobs\":-1"), INVALID, "logprobs"},
    {TEXT(",\"top_logprobs\":2"), UNSUPPORTED, "top_logprobs"},
    // streams
    {CHAT(",\"stream\":1"), INVALID, "stream"},
    {CHAT(",\"stream\":\"true\""), INVALID, "stream"},
    {CHAT(",\"stream_options\":{}"), INVALID, "stream_options"},
    {CHAT(",\"stream\":false,\"stream_options\":{\"include_usage\":true}"), INVALID,
     "stream_options"},
    {CHAT(",\"stream\":true,\"stream_options\":true"), INVALID, "stream_options"},
    {CHAT(",\"stream\":true,\"stream_options\":{\"include_usage\":1}"), INVALID,
     "stream_options.include_usage"},
    {CHAT(",\"stream\":true,\"stream_options\":{\"other\":1}"), UNSUPPORTED,
     "stream_options.other"},
    {CHAT(",\"stream\":true,\"stream_options\":{\"include_obfuscation\":true}"), UNSUPPORTED,
     "stream_options.include_obfuscation"},
    // completions only
    {TEXT(",\"echo\":1"), INVALID, "echo"},
    {TEXT(",\"suffix\":5"), INVALID, "suffix"},
    {TEXT(",\"suffix\":\"s\",\"echo\":true"), INVALID, "echo"},
    {PROMPT("[1,2],\"suffix\":\"s\""), INVALID, "suffix"},
    {TEXT(",\"best_of\":2"), UNSUPPORTED, "best_of"},
    {TEXT(",\"n\":2,\"best_of\":1"), UNSUPPORTED, "best_of"},
    {TEXT(",\"best_of\":\"1\""), INVALID, "best_of"},
    {TEXT(",\"context\":[]"), UNSUPPORTED, "context"},
    {TEXT(",\"messages\":[]"), UNSUPPORTED, "messages"},
    {CHAT(",\"echo\":true"), UNSUPPORTED, "echo"},
    {CHAT(",\"suffix\":\"s\""), UNSUPPORTED, "suffix"},
    {CHAT(",\"prompt\":\"s\""), UNSUPPORTED, "prompt"},
    {CHAT(",\"best_of\":1"), UNSUPPORTED, "best_of"},
    // not built, or unknown
    {CHAT(",\"tools\":[{\"type\":\"function\"}]"), UNSUPPORTED, "tools"},
    {CHAT(",\"tools\":{}"), INVALID, "tools"},
    {CHAT(",\"tool_choice\":\"auto\""), UNSUPPORTED, "tool_choice"},
    {CHAT(",\"tool_choice\":{\"type\":\"function\"}"), UNSUPPORTED, "tool_choice"},
    {CHAT(",\"parallel_tool_calls\":true"), UNSUPPORTED, "parallel_tool_calls"},
    {CHAT(",\"functions\":[{}]"), UNSUPPORTED, "functions"},
    {CHAT(",\"function_call\":\"auto\""), UNSUPPORTED, "function_call"},
    {CHAT(",\"response_format\":{\"type\":\"json_object\"}"), UNSUPPORTED, "response_format"},
    {CHAT(",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}"), UNSUPPORTED,
     "response_format"},
    {CHAT(",\"response_format\":{}"), INVALID, "response_format.type"},
    {CHAT(",\"response_format\":\"text\""), INVALID, "response_format"},
    {CHAT(",\"modalities\":[\"audio\"]"), UNSUPPORTED, "modalities"},
    {CHAT(",\"modalities\":[\"text\",\"audio\"]"), UNSUPPORTED, "modalities"},
    {CHAT(",\"modalities\":\"text\""), INVALID, "modalities"},
    {CHAT(",\"service_tier\":\"flex\""), UNSUPPORTED, "service_tier"},
    {CHAT(",\"service_tier\":1"), INVALID, "service_tier"},
    {CHAT(",\"store\":true"), UNSUPPORTED, "store"},
    {CHAT(",\"store\":\"no\""), INVALID, "store"},
    {CHAT(",\"metadata\":[]"), INVALID, "metadata"},
    {CHAT(",\"metadata\":{\"a\":1}"), INVALID, "metadata.a"},
    {CHAT(",\"user\":1"), INVALID, "user"},
    {CHAT(",\"audio\":{}"), UNSUPPORTED, "audio"},
    {CHAT(",\"prediction\":{}"), UNSUPPORTED, "prediction"},
    {CHAT(",\"reasoning_effort\":\"low\""), UNSUPPORTED, "reasoning_effort"},
    {CHAT(",\"verbosity\":\"low\""), UNSUPPORTED, "verbosity"},
    {CHAT(",\"web_search_options\":{}"), UNSUPPORTED, "web_search_options"},
    {CHAT(",\"guided_json\":{}"), UNSUPPORTED, "guided_json"},
    {CHAT(",\"Temperature\":1"), UNSUPPORTED, "Temperature"},
    {CHAT(",\"\":1"), UNSUPPORTED, ""},
    {CHAT(",\"foo\":null"), UNSUPPORTED, "foo"},
    {TEXT(",\"tools\":[]"), UNSUPPORTED, "tools"},
    // tokenize, detokenize
    {OPENAI_TOKENIZE, "{\"model\":\"m\"}", INVALID, "prompt"},
    {TOKENIZE("\"prompt\":\"x\"," HELLO), INVALID, "prompt"},
    {TOKENIZE("\"prompt\":[\"x\",\"y\"]"), INVALID, "prompt"},
    {TOKENIZE("\"prompt\":[1]"), INVALID, "prompt"},
    {TOKENIZE("\"prompt\":\"x\",\"add_special_tokens\":1"), INVALID, "add_special_tokens"},
    {TOKENIZE("\"prompt\":\"x\",\"add_generation_prompt\":true"), UNSUPPORTED,
     "add_generation_prompt"},
    {TOKENIZE(HELLO ",\"add_special_tokens\":true"), UNSUPPORTED, "add_special_tokens"},
    {TOKENIZE(HELLO ",\"chat_template\":\"x\""), UNSUPPORTED, "chat_template"},
    {TOKENIZE("\"prompt\":\"x\",\"temperature\":1"), UNSUPPORTED, "temperature"},
    {OPENAI_DETOKENIZE, "{\"model\":\"m\"}", INVALID, "tokens"},
    {DETOKENIZE("\"tokens\":[]"), INVALID, "tokens"},
    {DETOKENIZE("\"tokens\":\"x\""), INVALID, "tokens"},
    {DETOKENIZE("\"tokens\":[\"x\"]"), INVALID, "tokens[0]"},
    {DETOKENIZE("\"tokens\":[1,-1]"), INVALID, "tokens[1]"},
    {DETOKENIZE("\"tokens\":[1],\"prompt\":\"x\""), UNSUPPORTED, "prompt"},
};

static void a_refused_body_has_a_status_a_code_and_the_members_path(void **state) {
    (void)state;
    int failed = 0;
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        arena a;
        arena_init(&a);
        openai_request q;
        err e = {0};
        int rc = openai_request_parse(bads[i].kind, bads[i].body, strlen(bads[i].body), &limits, &a,
                                      &q, &e);
        openai_error told = openai_error_of(&e);
        bool has_text = e.message[0] != 0;
        if (rc != -1 || told.status != 400 || strcmp(told.code, bads[i].code) != 0 ||
            strcmp(e.param, bads[i].param) != 0 || !has_text) {
            printf("%s\n  got %d, %d %s, '%s': %s\n", bads[i].body, rc, told.status, told.code,
                   e.param, e.message);
            failed++;
        }
        openai_request_release(&q);
        arena_release(&a);
    }
    assert_true(sizeof bads / sizeof *bads > 150);
    assert_int_equal(failed, 0);
}

typedef struct parsed {
    arena a;
    openai_request q;
    err e;
} parsed;

static openai_request *parse(parsed *p, openai_kind kind, const char *body) {
    memset(p, 0, sizeof *p);
    arena_init(&p->a);
    if (openai_request_parse(kind, body, strlen(body), &limits, &p->a, &p->q, &p->e))
        fail_msg("%s: %s", body, p->e.message);
    return &p->q;
}

static void done(parsed *p) {
    openai_request_release(&p->q);
    arena_release(&p->a);
}

static void an_absent_member_has_openais_default(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(&p, CHAT(""));
    assert_string_equal(q->model.s, "m");
    assert_int_equal(q->n_choices, 1);
    assert_int_equal(q->max_tokens, 0);
    assert_false(q->stream || q->include_usage || q->has_logprobs || q->ignore_eos);
    assert_true(q->sampling.temperature == 1 && q->sampling.top_p == 1 && q->sampling.min_p == 0);
    assert_true(q->sampling.presence_penalty == 0 && q->sampling.repetition_penalty == 1);
    assert_int_equal(q->sampling.top_k, 0);
    assert_int_equal(q->sampling.n_top_logprobs, -1);
    assert_int_equal(q->n_stops, 0);
    done(&p);
}

static void every_plain_member_reaches_the_request(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(
        &p,
        CHAT(",\"n\":2,\"max_tokens\":7,\"max_completion_tokens\":7,\"temperature\":0.5,"
             "\"top_p\":0.25,\"top_k\":40,\"min_p\":0.125,\"presence_penalty\":-1.5,"
             "\"frequency_penalty\":1.5,\"repetition_penalty\":1.25,\"seed\":-3,\"stream\":true,"
             "\"stream_options\":{\"include_usage\":true,\"include_obfuscation\":false},"
             "\"logprobs\":true,\"top_logprobs\":20,\"ignore_eos\":true,\"stop\":[\"a\",\"bc\"],"
             "\"logit_bias\":{\"0\":-100,\"42\":2.5},\"service_tier\":\"auto\""));
    assert_int_equal(q->n_choices, 2);
    assert_int_equal(q->max_tokens, 7);
    const sampling_params *s = &q->sampling;
    assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f);
    assert_true(s->presence_penalty == -1.5f && s->frequency_penalty == 1.5f);
    assert_true(s->repetition_penalty == 1.25f);
    assert_int_equal(s->top_k, 40);
    assert_true(s->seed == (uint64_t)-3);
    assert_true(q->stream && q->include_usage && q->has_logprobs && q->ignore_eos && q->wants_tier);
    assert_int_equal(s->n_top_logprobs, 20);
    assert_int_equal(q->n_stops, 2);
    assert_memory_equal(q->stops[1].text, "bc", 2);
    assert_int_equal(s->n_bias, 2);
    assert_int_equal(s->bias[1].id, 42);
    assert_true(s->bias[1].bias == 2.5f && s->bias[0].bias == -100);
    done(&p);
}

static void members_that_ask_for_nothing_are_accepted(void **state) {
    (void)state;
    static const char *const more[] = {
        ",\"user\":\"u\"",
        ",\"store\":false",
        ",\"tools\":[]",
        ",\"tool_choice\":\"none\"",
        ",\"parallel_tool_calls\":false",
        ",\"functions\":[]",
        ",\"function_call\":\"none\"",
        ",\"response_format\":{\"type\":\"text\"}",
        ",\"modalities\":[\"text\"]",
        ",\"service_tier\":\"default\"",
        ",\"metadata\":{\"a\":\"b\"}",
        ",\"safety_identifier\":\"x\",\"prompt_cache_key\":\"y\"",
        ",\"tools\":null,\"n\":null,\"stop\":null,\"seed\":null,\"audio\":null,\"stream\":null",
        ",\"stop\":[]",
        ",\"logit_bias\":{}",
        ",\"stream_options\":null",
        ",\"top_k\":-1",
        ",\"seed\":9223372036854775807",
        ",\"seed\":-9223372036854775808",
        ",\"temperature\":0",
        ",\"temperature\":2",
    };
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        char body[512];
        parsed p;
        snprintf(body, sizeof body, "{\"model\":\"m\"," HELLO "%s}", more[i]);
        parse(&p, OPENAI_CHAT, body);
        done(&p);
    }
}

static void top_p_of_zero_leaves_the_likeliest_token(void **state) {
    (void)state;
    parsed p;
    assert_true(parse(&p, CHAT(",\"top_p\":0"))->sampling.top_p == FLT_MIN);
    done(&p);
}

static void an_absent_seed_is_drawn_anew(void **state) {
    (void)state;
    parsed p, r;
    uint64_t first = parse(&p, CHAT(""))->sampling.seed;
    assert_true(first != parse(&r, CHAT(",\"seed\":null"))->sampling.seed);
    done(&p);
    done(&r);
}

static void text_parts_are_joined(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(&p, CONTENT("[{\"type\":\"text\",\"text\":\"a\\ud83d\\ude00\"},"
                                          "{\"type\":\"text\",\"text\":\"\"},"
                                          "{\"text\":\"b\",\"type\":\"text\"}]"));
    assert_int_equal(q->messages[0].n_content, 6);
    assert_memory_equal(q->messages[0].content,
                        "a\xf0\x9f\x98\x80"
                        "b",
                        6);
    assert_int_equal(q->text_bytes, 6);
    done(&p);
}

static void every_role_is_read(void **state) {
    (void)state;
    parsed p;
    openai_request *q =
        parse(&p, MESSAGES("[{\"role\":\"developer\",\"content\":\"a\"},"
                           "{\"role\":\"user\",\"content\":\"\"},"
                           "{\"role\":\"assistant\",\"content\":\"c\",\"refusal\":null,"
                           "\"tool_calls\":[],\"annotations\":[]},"
                           "{\"role\":\"tool\",\"content\":\"d\",\"tool_call_id\":\"t\"}]"));
    assert_int_equal(q->n_messages, 4);
    assert_string_equal(q->messages[0].role, "developer");
    assert_int_equal(q->messages[1].n_content, 0);
    assert_string_equal(q->messages[3].tool_call_id, "t");
    done(&p);
}

static void a_prompt_has_four_shapes(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(&p, PROMPT("\"ab\""));
    assert_int_equal(q->n_prompts, 1);
    assert_int_equal(q->prompts[0].text.n, 2);
    done(&p);
    q = parse(&p, PROMPT("[\"a\",\"b\"]"));
    assert_int_equal(q->n_prompts, 2);
    assert_string_equal(q->prompts[1].text.s, "b");
    assert_string_equal(q->prompts[1].path.text, "prompt[1]");
    done(&p);
    q = parse(&p, PROMPT("[5,0,2147483647]"));
    assert_int_equal(q->n_prompts, 1);
    assert_int_equal(q->prompts[0].n_ids, 3);
    assert_int_equal(q->prompts[0].ids[2], 2147483647);
    done(&p);
    q = parse(&p, PROMPT("[[5],[6,7]]"));
    assert_int_equal(q->n_prompts, 2);
    assert_int_equal(q->prompts[1].ids[1], 7);
    done(&p);
}

static void legacy_logprobs_count_alternatives(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(&p, TEXT(",\"logprobs\":0,\"echo\":true,\"n\":2,\"best_of\":2"));
    assert_true(q->has_logprobs && q->echo);
    assert_int_equal(q->sampling.n_top_logprobs, 0);
    done(&p);
}

static void an_empty_suffix_is_a_suffix(void **state) {
    (void)state;
    parsed p;
    assert_non_null(parse(&p, TEXT(",\"suffix\":\"\""))->suffix.s);
    done(&p);
    assert_null(parse(&p, TEXT(",\"suffix\":null"))->suffix.s);
    done(&p);
}

static void three_hundred_biases_are_the_most(void **state) {
    (void)state;
    for (int n = 300; n <= 301; n++) {
        buf b = {0};
        arena a;
        openai_request q;
        err e = {0};
        arena_init(&a);
        buf_puts(&b, "{\"model\":\"m\"," HELLO ",\"logit_bias\":{");
        for (int i = 0; i < n; i++)
            buf_printf(&b, "%s\"%d\":1", i ? "," : "", i);
        buf_puts(&b, "}}");
        int rc = openai_request_parse(OPENAI_CHAT, b.data, b.len, &limits, &a, &q, &e);
        assert_int_equal(rc, n == 300 ? 0 : -1);
        assert_string_equal(e.param, n == 300 ? "" : "logit_bias");
        openai_request_release(&q);
        arena_release(&a);
        buf_release(&b);
    }
}

static void tokenize_knows_prompt_and_messages(void **state) {
    (void)state;
    parsed p;
    openai_request *q = parse(&p, TOKENIZE("\"prompt\":\"x\",\"add_special_tokens\":false,"
                                           "\"return_token_strs\":true"));
    assert_false(q->add_special_tokens);
    assert_true(q->return_token_strs);
    done(&p);
    q = parse(&p, TOKENIZE(HELLO ",\"add_generation_prompt\":false"));
    assert_false(q->add_generation_prompt);
    assert_int_equal(q->n_messages, 1);
    done(&p);
    q = parse(&p, DETOKENIZE("\"tokens\":[3,4]"));
    assert_int_equal(q->prompts[0].n_ids, 2);
    done(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_body_has_a_status_a_code_and_the_members_path),
        cmocka_unit_test(an_absent_member_has_openais_default),
        cmocka_unit_test(every_plain_member_reaches_the_request),
        cmocka_unit_test(members_that_ask_for_nothing_are_accepted),
        cmocka_unit_test(top_p_of_zero_leaves_the_likeliest_token),
        cmocka_unit_test(an_absent_seed_is_drawn_anew),
        cmocka_unit_test(text_parts_are_joined),
        cmocka_unit_test(every_role_is_read),
        cmocka_unit_test(a_prompt_has_four_shapes),
        cmocka_unit_test(legacy_logprobs_count_alternatives),
        cmocka_unit_test(an_empty_suffix_is_a_suffix),
        cmocka_unit_test(three_hundred_biases_are_the_most),
        cmocka_unit_test(tokenize_knows_prompt_and_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
