// The chat templates against what Jinja makes of the models' own: the same text, the same ids
// (tests/oracle/gen_tokenizer_goldens.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "model/template.h"
#include "tests/support/vocabulary.h"

#define GOLDENS "tests/fixtures/template/goldens.json.gz"
#define MAX_MESSAGES 32

static json_t *goldens;

static size_t take_messages(size_t conversation, chat_message *out) {
    const json_t *list = json_array_get(json_object_get(goldens, "conversations"), conversation);
    size_t n = json_array_size(list);
    assert_true(n && n <= MAX_MESSAGES);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, i), *content = json_object_get(m, "content");
        out[i] = (chat_message){.role = json_string_value(json_object_get(m, "role")),
                                .content = json_string_value(content),
                                .n_content = json_string_length(content)};
    }
    return n;
}

static const char *field(const json_t *c, const char *key) {
    return json_string_value(json_object_get(c, key));
}

static void render(const json_t *c, arena *a, segment_list *out) {
    chat_message messages[MAX_MESSAGES];
    size_t n =
        take_messages((size_t)json_integer_value(json_object_get(c, "conversation")), messages);
    const chat_template *t = template_by_name(field(c, "template"));
    err e = {0};
    assert_non_null(t);
    bool add = json_is_true(json_object_get(c, "add_generation"));
    if (template_render(t, messages, n, add, a, out, &e))
        fail_msg("%s: %s", template_name(t), e.message);
}

static void every_conversation_is_written_as_jinja_writes_it(void **state) {
    (void)state;
    size_t i, wrong = 0;
    json_t *c;
    json_array_foreach(json_object_get(goldens, "cases"), i, c) {
        arena a;
        arena_init(&a);
        segment_list l = {0};
        buf text = {0};
        render(c, &a, &l);
        for (size_t k = 0; k < l.n; k++)
            buf_put(&text, l.items[k].text, l.items[k].n);
        const json_t *wanted = json_object_get(c, "text");
        if (text.len != json_string_length(wanted) ||
            memcmp(text.data, json_string_value(wanted), text.len)) {
            wrong++;
            printf("%s (%s.jinja), conversation %lld:\nwanted %s\ngot    %s\n",
                   field(c, "template"), field(c, "jinja"),
                   json_integer_value(json_object_get(c, "conversation")),
                   json_string_value(wanted), text.data);
        }
        buf_release(&text);
        arena_release(&a);
    }
    assert_true(i >= 300);
    assert_int_equal(wrong, 0);
}

// As Hugging Face tokenises the whole rendered text: segments leave no trace.
static void check_ids(const char *template, const char *vocabulary_name) {
    vocabulary v;
    size_t i, seen = 0;
    json_t *c;
    if (!vocabulary_open(&v, vocabulary_name, NULL))
        skip();
    json_array_foreach(json_object_get(goldens, "cases"), i, c) {
        const json_t *ids = json_object_get(c, "ids");
        if (!ids || strcmp(field(c, "template"), template) != 0)
            continue;
        arena a;
        arena_init(&a);
        segment_list l = {0};
        token_list made = {0};
        err e = {0};
        render(c, &a, &l);
        assert_int_equal(template_encode(v.tokens, &l, &made, &e), 0);
        assert_int_equal(made.n, json_array_size(ids));
        for (size_t k = 0; k < made.n; k++)
            assert_int_equal(made.ids[k], json_integer_value(json_array_get(ids, k)));
        token_list_release(&made);
        arena_release(&a);
        seen++;
    }
    assert_true(seen >= 20);
    vocabulary_close(&v);
}

static void smollm_prompts_have_hugging_face_ids(void **state) {
    (void)state;
    check_ids("smollm", "smollm2");
}

static void qwen_prompts_have_hugging_face_ids(void **state) {
    (void)state;
    check_ids("qwen2.5", "qwen3");
    check_ids("qwen3", "qwen3");
    check_ids("qwen3-thinking", "qwen3");
    check_ids("qwen3-no-think", "qwen3");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_conversation_is_written_as_jinja_writes_it),
        cmocka_unit_test(smollm_prompts_have_hugging_face_ids),
        cmocka_unit_test(qwen_prompts_have_hugging_face_ids),
    };
    goldens = json_gz(GOLDENS);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(goldens);
    return failed;
}
