// The chat templates against what Jinja makes of the models' own: the same text, the same ids, and
// each template text is recognised (tests/oracle/gen_tokenizer_goldens.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "model/template.h"
#include "tests/support/vocabulary.h"

#define FIXTURES "tests/fixtures/template/"
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

// ---- recognition

static int detect(const char *text, size_t n, const chat_template **out, err *e) {
    gguf_builder b;
    buf file = {0};
    gguf *g;
    gguf_builder_init(&b);
    buf value = {0};
    buf_put_u64(&value, n);
    buf_put(&value, text, n);
    builder_raw(&b, "tokenizer.chat_template", GGUF_STRING, value.data, value.len);
    gguf_builder_write(&b, &file);
    assert_int_equal(gguf_open_memory(file.data, file.len, &g, e), 0);
    int rc = template_detect(g, out, e);
    gguf_close(g);
    buf_release(&value);
    buf_release(&file);
    gguf_builder_release(&b);
    return rc;
}

static void each_model_template_is_recognised(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"chatml", "chatml"},   {"smollm", "smollm"},     {"qwen2", "qwen2"},
        {"qwen2.5", "qwen2.5"}, {"qwen3", "qwen3"},       {"qwen3-thinking", "qwen3-thinking"},
        {"llama3", "llama3"},   {"llama3.1", "llama3.1"}, {"llama3.2", "llama3.1"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char path[128];
        buf text = {0};
        const chat_template *t = NULL;
        err e = {0};
        snprintf(path, sizeof path, FIXTURES "%s.jinja", pairs[i][0]);
        assert_int_equal(file_read(path, 1 << 20, &text, &e), 0);
        if (detect(text.data, text.len, &t, &e))
            fail_msg("%s: %s", path, e.message);
        assert_string_equal(template_name(t), pairs[i][1]);
        buf_release(&text);
    }
}

static void spelling_differences_of_a_template_do_not_matter(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{%- for message in messages -%}{{- \"<|im_start|>\" + message.role + \"\\n\" + "
        "message.content + \"<|im_end|>\\n\" -}}{%- endfor -%}\n{%- if add_generation_prompt -%}"
        "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
        "{# a comment #}{% for message in messages %}{{'<|im_start|>' + message[\"role\"] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n' }}{% endif %}"};
    for (size_t i = 0; i < 2; i++) {
        const chat_template *t = NULL;
        err e = {0};
        assert_int_equal(detect(texts[i], strlen(texts[i]), &t, &e), 0);
        assert_string_equal(template_name(t), "chatml");
    }
}

// The text of fixture `name` with `from` replaced by `to` is no longer taken for anything.
static void check_refused(const char *name, const char *from, const char *to) {
    char path[128];
    buf text = {0}, changed = {0};
    const chat_template *t = NULL;
    err e = {0};
    snprintf(path, sizeof path, FIXTURES "%s.jinja", name);
    assert_int_equal(file_read(path, 1 << 20, &text, &e), 0);
    char *at = strstr(text.data, from);
    assert_non_null(at);
    buf_put(&changed, text.data, (size_t)(at - text.data));
    buf_puts(&changed, to);
    buf_puts(&changed, at + strlen(from));
    assert_int_equal(detect(changed.data, changed.len, &t, &e), -1);
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(e.message, "[model NAME] template="));
    assert_non_null(strstr(e.message, template_names()));
    buf_release(&changed);
    buf_release(&text);
}

static void a_template_that_does_anything_else_is_refused_with_the_setting(void **state) {
    (void)state;
    check_refused("smollm", "named SmolLM", "named Other");
    check_refused("qwen2", "You are a helpful assistant.", "You are a pirate.");
    check_refused("qwen2.5",
                  "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<",
                  "Another system prompt.<");
    check_refused("chatml", "message['content']", "message['content'] | trim");
    check_refused("chatml", "<|im_end|>", "<|end|>");
    check_refused("qwen3", "split('</think>')[-1].lstrip", "split('</think>')[-1].strip");
    check_refused("qwen3", "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>bot\\n' }}");
    check_refused("llama3", "| trim", "");
    check_refused("llama3.1", "26 Jul 2024", "27 Jul 2024");
    check_refused("llama3.2", "December 2023", "March 2025");
    const chat_template *t = NULL;
    err e = {0};
    const char *inst = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}";
    assert_int_equal(detect(inst, strlen(inst), &t, &e), -1);
    assert_int_equal(detect("", 0, &t, &e), -1);
    assert_int_equal(detect("{{ 'open", 8, &t, &e), -1);
    assert_int_equal(detect("{% if ['x", 9, &t, &e), -1);
    assert_int_equal(detect("{# {{ -", 7, &t, &e), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_conversation_is_written_as_jinja_writes_it),
        cmocka_unit_test(smollm_prompts_have_hugging_face_ids),
        cmocka_unit_test(qwen_prompts_have_hugging_face_ids),
        cmocka_unit_test(each_model_template_is_recognised),
        cmocka_unit_test(spelling_differences_of_a_template_do_not_matter),
        cmocka_unit_test(a_template_that_does_anything_else_is_refused_with_the_setting),
    };
    goldens = json_gz(FIXTURES "goldens.json.gz");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(goldens);
    return failed;
}
