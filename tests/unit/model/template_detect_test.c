// Which of our templates a model's Jinja text is taken for: real models' own, and short ones
// written here of what decides the output of each family. Whatever does more or less is refused.
//
//   template_detect_test DIR
//
// checks that the models' own templates in DIR/NAME.jinja are recognised; they are not ours to
// carry.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "model/template.h"
#include "tests/support/vocabulary.h"

#define MAX_PARTS 10

// ---- what the families have in common

#define EACH "{% for message in messages %}"
#define TURN "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
#define ANSWER "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define THINKING_ANSWER                                                                            \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
#define UNLESS_SYSTEM "{% if loop.first and messages[0].role != 'system' %}"
#define SYSTEM(text) "{{ '<|im_start|>system\\n" text "<|im_end|>\\n' }}"
#define SMOLLM_SAYS "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define QWEN2_SAYS "You are a helpful assistant."
#define QWEN25_SAYS "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
#define FIRST_TURN "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
#define TOOL_TURN "{{ '\\n<tool_response>\\n' }}"
#define TOOL_REST "{{ message.content }}{{ '\\n</tool_response><|im_end|>\\n' }}"
#define QUERY "{% set ns = namespace(last_query_index=0) %}{{ 'x' if ns.last_query_index }}"
#define CUT "{% set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
#define KEPT "{% if loop.last or (not loop.last and reasoning_content) %}{% endif %}"
#define THOUGHTS                                                                                   \
    "{{ '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + "       \
    "'\\n</think>\\n\\n' + content.lstrip('\\n') }}"
#define LLAMA_TURN                                                                                 \
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | "     \
    "trim + '<|eot_id|>' }}"
#define LLAMA_ANSWER                                                                               \
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"    \
    "{% endif %}"
#define LLAMA_SYSTEM "{% set system_message = messages[0].content | trim %}"
#define LLAMA_TOOL "{{ message.content | tojson }}"

// A template as its parts: without any one of them it is another. Glue stands in the part before.
typedef struct written {
    const char *name;
    const char *parts[MAX_PARTS];
} written;

static const written texts[] = {
    {"chatml", {EACH TURN "{% endfor %}", ANSWER}},
    {"smollm",
     {EACH UNLESS_SYSTEM, SYSTEM(SMOLLM_SAYS) "{% endif %}", TURN "{% endfor %}", ANSWER}},
    {"qwen2", {EACH UNLESS_SYSTEM, SYSTEM(QWEN2_SAYS) "{% endif %}", TURN "{% endfor %}", ANSWER}},
    {"qwen2.5",
     {"{% if messages[0].role == 'system' %}" FIRST_TURN "{% else %}",
      SYSTEM(QWEN25_SAYS) "{% endif %}" EACH "{% if message.role == 'tool' %}",
      TOOL_TURN TOOL_REST "{% elif not loop.first or message.role != 'system' %}",
      TURN "{% endif %}{% endfor %}", ANSWER}},
    {"qwen3",
     {QUERY, "{% if messages[0].role == 'system' %}" FIRST_TURN "{% endif %}" EACH,
      "{% if message.role == 'tool' %}" TOOL_TURN TOOL_REST "{% endif %}", CUT, KEPT,
      THOUGHTS "{% endfor %}", ANSWER}},
    {"qwen3-thinking",
     {QUERY, "{% if messages[0].role == 'system' %}" FIRST_TURN "{% endif %}" EACH,
      "{% if message.role == 'tool' %}" TOOL_TURN TOOL_REST "{% endif %}", CUT, KEPT,
      THOUGHTS "{% endfor %}", THINKING_ANSWER}},
    {"llama3", {"{{ bos_token }}", EACH LLAMA_TURN "{% endfor %}", LLAMA_ANSWER}},
    {"llama3.1",
     {"{{ bos_token }}", "{% set date_string = '26 Jul 2024' %}", LLAMA_SYSTEM,
      "{{ 'Cutting Knowledge Date: December 2023\\n' }}",
      "{{ 'Today Date: ' + date_string + '\\n\\n' }}{{ system_message }}" EACH, LLAMA_TOOL,
      LLAMA_TURN "{% endfor %}", LLAMA_ANSWER}},
    // 3.2 and 3.3: with a clock when there is one
    {"llama3.1",
     {"{{ bos_token }}",
      "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
      "{% set date_string = '26 Jul 2024' %}{% endif %}",
      LLAMA_SYSTEM, "{{ 'Cutting Knowledge Date: December 2023\\n' }}",
      "{{ 'Today Date: ' + date_string + '\\n\\n' }}{{ system_message }}" EACH, LLAMA_TOOL,
      LLAMA_TURN "{% endfor %}", LLAMA_ANSWER}},
};
#define N_TEXTS (sizeof texts / sizeof *texts)

// Appends all parts but number `without`.
static void join(const written *w, size_t without, buf *out) {
    for (size_t i = 0; i < MAX_PARTS && w->parts[i]; i++)
        if (i != without)
            buf_puts(out, w->parts[i]);
}

static const written *find_text(const char *name) {
    for (size_t i = 0; i < N_TEXTS; i++)
        if (!strcmp(texts[i].name, name))
            return &texts[i];
    fail_msg("no text for %s", name);
    return NULL;
}

// ---- asking

static int detect(const char *text, size_t n, const chat_template **out, err *e) {
    gguf_builder b;
    buf file = {0}, value = {0};
    gguf *g;
    gguf_builder_init(&b);
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

static void check_is(const char *text, size_t n, const char *name, const char *where) {
    const chat_template *t = NULL;
    err e = {0};
    if (detect(text, n, &t, &e))
        fail_msg("%s: %s", where, e.message);
    if (strcmp(template_name(t), name) != 0)
        fail_msg("%s is taken for %s", where, template_name(t));
}

static void check_refused(const char *text, size_t n, const char *where) {
    const chat_template *t = NULL;
    err e = {0};
    if (!detect(text, n, &t, &e))
        fail_msg("%s is taken for %s: %.*s", where, template_name(t), (int)n, text);
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(e.message, "[model NAME] template="));
    assert_non_null(strstr(e.message, template_names()));
}

// ---- the rules

static void check_real_model(const char *vocabulary_name, const char *name) {
    vocabulary v;
    if (!vocabulary_open(&v, vocabulary_name, NULL))
        skip();
    const chat_template *t = NULL;
    err e = {0};
    if (!gguf_has(v.file, "tokenizer.chat_template", NULL)) {
        printf("skip: the file of %s has no tokenizer.chat_template\n", vocabulary_name);
        vocabulary_close(&v);
        skip();
    }
    if (template_detect(v.file, &t, &e))
        fail_msg("%s: %s", vocabulary_name, e.message);
    assert_string_equal(template_name(t), name);
    vocabulary_close(&v);
}

static void smollm2_is_recognised(void **state) {
    (void)state;
    check_real_model("smollm2", "smollm");
}

static void qwen3_is_recognised(void **state) {
    (void)state;
    check_real_model("qwen3", "qwen3");
}

static void a_family_is_recognised_by_what_decides_its_output(void **state) {
    (void)state;
    for (size_t i = 0; i < N_TEXTS; i++) {
        buf text = {0};
        join(&texts[i], MAX_PARTS, &text);
        check_is(text.data, text.len, texts[i].name, texts[i].name);
        buf_release(&text);
    }
}

static void without_any_part_of_it_a_template_is_another(void **state) {
    (void)state;
    for (size_t i = 0; i < N_TEXTS; i++)
        for (size_t part = 0; part < MAX_PARTS && texts[i].parts[part]; part++) {
            buf text = {0};
            join(&texts[i], part, &text);
            check_refused(text.data, text.len, texts[i].name);
            buf_release(&text);
        }
}

// What a family has not, and what would change its output.
static void a_template_that_does_more_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *name, *more[12];
    } rows[] = {
        {"chatml",
         {"system", "tools", "<think>", "| trim", "bos_token", "raise_exception('x')",
          "message.role == 'user'", "| strip"}},
        {"smollm",
         {"tools", "<think>", "| trim", "bos_token", "raise_exception('x')",
          "message.role == 'user'"}},
        {"qwen2",
         {"tools", "<think>", "| trim", "bos_token", "raise_exception('x')",
          "message.role == 'user'"}},
        {"qwen2.5", {"<think>", "| trim", ".strip()"}},
        {"qwen3", {"'You are a pirate'", "| trim"}},
        {"qwen3-thinking", {"'You are a pirate'", "| trim"}},
        {"llama3", {"tools", "system", "date_string", "raise_exception('x')", "<think>"}},
        {"llama3.1", {"<think>"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (const char *const *more = rows[i].more; *more; more++) {
            buf text = {0};
            join(find_text(rows[i].name), MAX_PARTS, &text);
            buf_printf(&text, "{{ %s }}", *more);
            check_refused(text.data, text.len, rows[i].name);
            buf_release(&text);
        }
}

static void a_template_that_does_something_else_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *name, *from, *to;
    } rows[] = {
        {"chatml", "message.content", "message.content | trim"},
        {"chatml", "message.content", "message.text"},
        {"chatml", "<|im_end|>", "<|end|>"},
        {"chatml", "' + '\\n'", "'"},
        {"smollm", "named SmolLM", "named Other"},
        {"smollm", "loop.first and", "loop.first or"},
        {"qwen2", QWEN2_SAYS, "You are a pirate."},
        {"qwen2.5", QWEN25_SAYS, "You are a pirate."},
        {"qwen2.5", "\\n<tool_response>\\n", "<tool_response>\\n"},
        {"qwen3", "[-1].lstrip", "[-1].strip"},
        {"qwen3", "assistant\\n' }}{% endif", "bot\\n' }}{% endif"},
        {"qwen3", "not loop.last and", "loop.first and"},
        {"qwen3", "reasoning_content.strip('\\n')", "reasoning_content"},
        {"qwen3-thinking", "assistant\\n<think>\\n' }}", "assistant\\n<thought>\\n' }}"},
        {"llama3", "| trim", ""},
        {"llama3", "<|eot_id|>", "<|eom_id|>"},
        {"llama3.1", "26 Jul 2024", "27 Jul 2024"},
        {"llama3.1", "December 2023", "March 2025"},
        {"llama3.1", "| tojson", ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        buf text = {0}, changed = {0};
        join(find_text(rows[i].name), MAX_PARTS, &text);
        const char *at = strstr(text.data, rows[i].from);
        assert_non_null(at);
        buf_put(&changed, text.data, (size_t)(at - text.data));
        buf_puts(&changed, rows[i].to);
        buf_puts(&changed, at + strlen(rows[i].from));
        check_refused(changed.data, changed.len, rows[i].from);
        buf_release(&changed);
        buf_release(&text);
    }
}

static void spelling_differences_of_a_template_do_not_matter(void **state) {
    (void)state;
    static const char *const spellings[] = {
        "{%- for message in messages -%}{{- \"<|im_start|>\" + message.role + \"\\n\" + "
        "message.content + \"<|im_end|>\\n\" -}}{%- endfor -%}\n{%- if add_generation_prompt -%}"
        "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
        "{# a comment #}{% for message in messages %}{{'<|im_start|>' + message[\"role\"] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n' }}{% endif %}"};
    for (size_t i = 0; i < 2; i++)
        check_is(spellings[i], strlen(spellings[i]), "chatml", spellings[i]);
}

static void strange_and_unfinished_texts_are_refused(void **state) {
    (void)state;
    static const char *const strange[] = {
        "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
        "",
        "{{ 'open",
        "{% if ['x",
        "{# {{ -",
        "{{ 'x\\",
        "{{ -",
        "{"};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++)
        check_refused(strange[i], strlen(strange[i]), strange[i]);
}

// ---- a directory of the models' own

static int check_directory(const char *dir) {
    static const char *const names[][2] = {
        {"qwen2", "qwen2"},   {"qwen2.5", "qwen2.5"},   {"qwen3-thinking", "qwen3-thinking"},
        {"llama3", "llama3"}, {"llama3.1", "llama3.1"}, {"llama3.2", "llama3.1"}};
    int wrong = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        buf text = {0};
        const chat_template *t = NULL;
        err e = {0};
        snprintf(path, sizeof path, "%s/%s.jinja", dir, names[i][0]);
        if (file_read(path, 1 << 20, &text, &e) || detect(text.data, text.len, &t, &e))
            printf("%s: %s\n", path, e.message);
        bool right = t && !strcmp(template_name(t), names[i][1]);
        if (t)
            printf("%s: %s\n", path, template_name(t));
        wrong += !right;
        buf_release(&text);
    }
    return wrong > 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_is_recognised),
        cmocka_unit_test(qwen3_is_recognised),
        cmocka_unit_test(a_family_is_recognised_by_what_decides_its_output),
        cmocka_unit_test(without_any_part_of_it_a_template_is_another),
        cmocka_unit_test(a_template_that_does_more_is_refused),
        cmocka_unit_test(a_template_that_does_something_else_is_refused),
        cmocka_unit_test(spelling_differences_of_a_template_do_not_matter),
        cmocka_unit_test(strange_and_unfinished_texts_are_refused),
    };
    return argc > 1 ? check_directory(argv[1]) : cmocka_run_group_tests(tests, NULL, NULL);
}
