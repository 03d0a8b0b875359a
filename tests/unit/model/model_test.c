// Models: shapes of the three architectures, what opening offers, the summary, the real small
// model.
#include "model/model.h"
#include "tests/support/gguf_builder.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"

#define SMALL_MODEL "SmolLM2-135M-Instruct.Q4_1.gguf"

static int read_shape(const gguf_builder *b, model_shape *s, err *e) {
    buf out = {0};
    gguf *g = NULL;
    gguf_builder_write(b, &out);
    *e = (err){0};
    int rc = gguf_open_memory(out.data, out.len, &g, e);
    if (!rc)
        rc = model_read_shape(g, s, e) || model_check_tensors(g, s, e) ? -1 : 0;
    gguf_close(g);
    buf_release(&out);
    return rc;
}

static void shape_ok(const gguf_builder *b, model_shape *s) {
    err e;
    if (read_shape(b, s, &e))
        fail_msg("%s", e.message);
}

static void each_architecture_yields_its_shape(void **state) {
    (void)state;
    for (int a = ARCH_LLAMA; a <= ARCH_QWEN3; a++) {
        gguf_builder b;
        model_shape s;
        gguf_builder_init(&b);
        builder_small_model(&b, model_arch_name((model_arch)a), 1);
        shape_ok(&b, &s);
        assert_int_equal(s.arch, a);
        assert_int_equal(s.n_layers, SMALL_LAYERS);
        assert_int_equal(s.dim, SMALL_DIM);
        assert_int_equal(s.n_heads, SMALL_HEADS);
        assert_int_equal(s.n_kv_heads, SMALL_KV_HEADS);
        assert_int_equal(s.head_dim, SMALL_HEAD_DIM);
        assert_int_equal(s.intermediate, SMALL_INTERMEDIATE);
        assert_int_equal(s.context, SMALL_CONTEXT);
        assert_int_equal(s.n_vocab, 265);
        assert_true(s.rms_eps == 1e-5f && s.rope_base == 10000);
        assert_int_equal(s.scaling, ROPE_NONE);
        assert_true(s.tied_head);
        assert_int_equal(s.qkv_bias, a == ARCH_QWEN2);
        gguf_builder_release(&b);
    }
}

static void absent_optional_keys_have_their_defaults(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    builder_remove_key(&b, "llama.rope.freq_base");
    shape_ok(&b, &s);
    assert_true(s.rope_base == 10000);
    assert_true(s.rope_factor == 1 && s.rope_attn_factor == 1);
    assert_int_equal(s.rope_original_context, SMALL_CONTEXT);
    builder_remove_key(&b, "llama.attention.head_count_kv"); // as many as query heads
    for (int i = 0; i < SMALL_LAYERS; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.attn_k.weight", i);
        builder_remove_tensor(&b, name);
        builder_add_tensor(&b, name, 0, SMALL_DIM, SMALL_DIM, NULL);
        snprintf(name, sizeof name, "blk.%d.attn_v.weight", i);
        builder_remove_tensor(&b, name);
        builder_add_tensor(&b, name, 0, SMALL_DIM, SMALL_DIM, NULL);
    }
    shape_ok(&b, &s);
    assert_int_equal(s.n_kv_heads, SMALL_HEADS);
    gguf_builder_release(&b);
}

static void key_length_sets_the_width_of_heads(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    gguf_builder_init(&b);
    builder_small_model(&b, "qwen3", 1);
    builder_u32(&b, "qwen3.attention.key_length", 16);
    builder_u32(&b, "qwen3.attention.value_length", 16);
    for (int i = 0; i < SMALL_LAYERS; i++) {
        static const struct {
            const char *name;
            uint64_t dim0, dim1;
        } rows[] = {{"attn_q.weight", 32, 64},     {"attn_k.weight", 32, 32},
                    {"attn_v.weight", 32, 32},     {"attn_output.weight", 64, 32},
                    {"attn_q_norm.weight", 16, 0}, {"attn_k_norm.weight", 16, 0}};
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s", i, rows[r].name);
            builder_remove_tensor(&b, name);
            builder_add_tensor(&b, name, 0, rows[r].dim0, rows[r].dim1, NULL);
        }
    }
    shape_ok(&b, &s);
    assert_int_equal(s.head_dim, 16);
    gguf_builder_release(&b);
}

static void rope_scaling_is_read_in_all_its_spellings(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    builder_string(&b, "llama.rope.scaling.type", "none");
    shape_ok(&b, &s);
    assert_int_equal(s.scaling, ROPE_NONE);
    builder_string(&b, "llama.rope.scaling.type", "yarn");
    builder_f32(&b, "llama.rope.scaling.factor", 4);
    builder_f32(&b, "llama.rope.scaling.attn_factor", 0.5f);
    builder_u32(&b, "llama.rope.scaling.original_context_length", 64);
    shape_ok(&b, &s);
    assert_int_equal(s.scaling, ROPE_YARN);
    assert_true(s.rope_factor == 4 && s.rope_attn_factor == 0.5f);
    assert_int_equal(s.rope_original_context, 64);
    builder_string(&b, "llama.rope.scaling.type", "linear");
    shape_ok(&b, &s);
    assert_int_equal(s.scaling, ROPE_LINEAR);
    builder_remove_key(&b, "llama.rope.scaling.type");
    builder_f32(&b, "llama.rope.scale_linear", 2); // as files of 2023 say it
    shape_ok(&b, &s);
    assert_int_equal(s.scaling, ROPE_LINEAR);
    assert_true(s.rope_factor == 2);
    builder_remove_key(&b, "llama.rope.scale_linear");
    const float divisors[SMALL_HEAD_DIM / 2] = {1, 2, 4, 8};
    builder_add_tensor(&b, "rope_freqs.weight", 0, SMALL_HEAD_DIM / 2, 0, divisors);
    shape_ok(&b, &s);
    assert_int_equal(s.scaling, ROPE_LLAMA3);
    gguf_builder_release(&b);
}

static void an_output_matrix_of_its_own_is_seen(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    builder_add_tensor(&b, "output.weight", 1, SMALL_DIM, 265, NULL);
    shape_ok(&b, &s);
    assert_false(s.tied_head);
    gguf_builder_release(&b);
}

static void a_llama_with_biases_on_all_layers_opens(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    err e;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    for (int i = 0; i < SMALL_LAYERS; i++)
        for (const char *p = "qkv"; *p; p++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.attn_%c.bias", i, *p);
            builder_add_tensor(&b, name, 0, *p == 'q' ? 32 : 16, 0, NULL);
        }
    shape_ok(&b, &s);
    assert_true(s.qkv_bias);
    builder_remove_tensor(&b, "blk.1.attn_v.bias");
    assert_int_equal(read_shape(&b, &s, &e), -1);
    assert_string_equal(e.message, "tensor 'blk.1.attn_v.bias' is missing");
    gguf_builder_release(&b);
}

static void harmless_values_of_foreign_keys_are_accepted(void **state) {
    (void)state;
    gguf_builder b;
    model_shape s;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    builder_u32(&b, "llama.expert_count", 0);
    builder_bool(&b, "llama.attention.causal", true);
    builder_f32(&b, "llama.rope.scaling.yarn_beta_fast", 32);
    builder_u32(&b, "llama.attention.sliding_window", SMALL_CONTEXT);
    builder_u32(&b, "llama.vocab_size", 265);
    builder_u32(&b, "llama.rope.dimension_count", SMALL_HEAD_DIM);
    builder_string(&b, "general.type", "model");
    builder_u32(&b, "split.count", 1);
    builder_string(&b, "some.key.of.another.tool", "whatever");
    shape_ok(&b, &s);
    gguf_builder_release(&b);
}

// ---- through files

static void write_model(char *path, const gguf_builder *b) {
    buf out = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    gguf_builder_write(b, &out);
    assert_int_equal(write(fd, out.data, out.len), out.len);
    close(fd);
    buf_release(&out);
}

static model *open_ok(const char *path, const char *template) {
    model *m = NULL;
    err e = {0};
    if (model_open(path, template, &m, &e))
        fail_msg("%s", e.message);
    return m;
}

static void an_open_model_offers_all_its_parts(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-model-XXXXXX";
    gguf_builder b;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    write_model(path, &b);
    model *m = open_ok(path, NULL);
    assert_string_equal(model_file_name(m), "Tiny");
    assert_int_equal(strlen(model_revision(m)), 32);
    assert_int_equal(tokenizer_n_vocab(model_tokenizer(m)), 265);
    assert_int_equal(model_get_shape(m)->n_vocab, 265);
    assert_null(model_template(m)); // the file has none
    assert_non_null(gguf_find(model_gguf(m), "token_embd.weight"));
    assert_true(model_is_end(m, 264));
    assert_false(model_is_end(m, 0));
    model_close(m);
    m = open_ok(path, "chatml");
    assert_string_equal(template_name(model_template(m)), "chatml");
    model_close(m);
    unlink(path);
    gguf_builder_release(&b);
}

static void an_unknown_template_name_is_refused_with_the_known_ones(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-model-XXXXXX";
    gguf_builder b;
    model *m = NULL;
    err e = {0};
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    write_model(path, &b);
    assert_int_equal(model_open(path, "vicuna", &m, &e), -1);
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_string_equal(e.param, "template");
    assert_non_null(strstr(
        e.message, "no chat template 'vicuna'; set [model NAME] template= to one of chatml"));
    unlink(path);
    gguf_builder_release(&b);
}

static void an_unknown_template_in_the_file_fails_opening_but_not_the_check(void **state) {
    (void)state;
    char path[] = "/tmp/tiergate-model-XXXXXX";
    gguf_builder b;
    model *m = NULL;
    buf summary = {0};
    err e = {0};
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    builder_string(&b, "tokenizer.chat_template", "{{ what is this }}");
    write_model(path, &b);
    assert_int_equal(model_open(path, "", &m, &e), -1);
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_int_equal(model_check(path, &summary, &e), 0);
    assert_non_null(strstr(summary.data, "chat template  not recognised"));
    model_close(open_ok(path, "chatml")); // the setting helps
    unlink(path);
    buf_release(&summary);
    gguf_builder_release(&b);
}

static void names_that_cannot_be_shown_give_way_to_the_files_stem(void **state) {
    (void)state;
    static const char *const names[] = {"", "two\nlines", "\033[31mred", "broken \xff utf-8"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[] = "/tmp/tiergate-model-XXXXXX";
        gguf_builder b;
        gguf_builder_init(&b);
        builder_small_model(&b, "llama", 1);
        builder_string(&b, "general.name", names[i]);
        write_model(path, &b);
        model *m = open_ok(path, NULL);
        assert_string_equal(model_file_name(m), strrchr(path, '/') + 1);
        model_close(m);
        unlink(path);
        gguf_builder_release(&b);
    }
}

static void the_revision_follows_the_metadata(void **state) {
    (void)state;
    char revisions[3][33];
    for (int i = 0; i < 3; i++) {
        char path[] = "/tmp/tiergate-model-XXXXXX";
        gguf_builder b;
        gguf_builder_init(&b);
        builder_small_model(&b, "llama", 1);
        if (i == 2)
            builder_string(&b, "general.name", "Tinz");
        write_model(path, &b);
        model *m = open_ok(path, NULL);
        memcpy(revisions[i], model_revision(m), 33);
        model_close(m);
        unlink(path);
        gguf_builder_release(&b);
    }
    assert_string_equal(revisions[0], revisions[1]);
    assert_string_not_equal(revisions[0], revisions[2]);
}

static void revision_of(const gguf_builder *b, char out[33]) {
    char path[] = "/tmp/tiergate-model-XXXXXX";
    write_model(path, b);
    model *m = open_ok(path, NULL);
    memcpy(out, model_revision(m), 33);
    model_close(m);
    unlink(path);
}

// A large tensor is sampled, the others are read whole.
static void a_flipped_byte_of_a_weight_changes_the_revision(void **state) {
    (void)state;
    char before[33], after[33];
    gguf_builder b;
    gguf_builder_init(&b);
    builder_small_model(&b, "llama", 1);
    size_t n_large = builder_add_tensor(&b, "output.weight", 0, 32, 265, NULL)->data.len;
    assert_true(n_large > 2 * 4096 + 14 * 256);
    revision_of(&b, before);
    for (size_t i = 0; i < b.used_tensors; i++) {
        buf *data = &b.tensors[i].data;
        size_t last = data->len - 1, sampled[] = {0, last, 4095, last - 4095, last / 15 * 7 + 255};
        for (size_t k = 0; k < (data->len == n_large ? 5 : 2); k++) {
            data->data[sampled[k]] ^= 1;
            revision_of(&b, after);
            assert_string_not_equal(before, after);
            data->data[sampled[k]] ^= 1;
        }
    }
    builder_tensor(&b, "output.weight")->data.data[5000] ^= 1; // between the samples
    revision_of(&b, after);
    assert_string_equal(before, after);
    gguf_builder_release(&b);
}

static void the_summary_says_what_the_model_is(void **state) {
    (void)state;
    static const char *const lines[] = {
        "name           Tiny\n",
        "architecture   qwen2\n",
        "layers         2 of width 32, feed-forward 64, tied head\n",
        "attention      4 query and 2 KV heads of 8\n",
        "context        256 tokens (RoPE base 10000, YaRN)\n",
        "parameters     27.20 thousand\n",
        "weights        F32 68.8%, Q8_0 31.2%\n",
        "vocabulary     265 tokens (gpt2, gpt-2)\n",
        "chat template  none in the file\n",
        "fill-in-middle none\n",
        "GGUF version 3, 26 tensors, revision ",
    };
    char path[] = "/tmp/tiergate-model-XXXXXX";
    gguf_builder b;
    buf summary = {0};
    err e = {0};
    gguf_builder_init(&b);
    builder_small_model(&b, "qwen2", 1);
    builder_string(&b, "qwen2.rope.scaling.type", "yarn");
    builder_f32(&b, "qwen2.rope.scaling.factor", 4);
    write_model(path, &b);
    assert_int_equal(model_check(path, &summary, &e), 0);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (!strstr(summary.data, lines[i]))
            fail_msg("\"%s\" is not in:\n%s", lines[i], summary.data);
    unlink(path);
    buf_release(&summary);
    gguf_builder_release(&b);
}

// TIERGATE_TEST_MODEL, or where the installer puts the small model; false: neither is there.
static bool find_small_model(char *path, size_t size) {
    const char *given = getenv("TIERGATE_TEST_MODEL"), *cache = getenv("XDG_CACHE_HOME");
    if (given && *given)
        snprintf(path, size, "%s", given);
    else if (cache && *cache)
        snprintf(path, size, "%s/tiergate/" SMALL_MODEL, cache);
    else
        snprintf(path, size, "%s/.cache/tiergate/" SMALL_MODEL,
                 getenv("HOME") ? getenv("HOME") : "");
    return file_exists(path);
}

static void the_real_small_model_is_what_it_is_known_to_be(void **state) {
    (void)state;
    char path[4096];
    if (!find_small_model(path, sizeof path)) {
        print_message("skip: no " SMALL_MODEL " (set TIERGATE_TEST_MODEL)\n");
        skip();
    }
    buf summary = {0};
    err e = {0};
    if (model_check(path, &summary, &e))
        fail_msg("%s", e.message);
    assert_non_null(strstr(summary.data, "30 of width 576, feed-forward 1536, tied head"));
    assert_non_null(strstr(summary.data, "9 query and 3 KV heads of 64"));
    assert_non_null(strstr(summary.data, "134.52 million"));
    buf_release(&summary);
    model *m = open_ok(path, NULL);
    const model_shape *s = model_get_shape(m);
    assert_int_equal(s->n_vocab, 49152);
    assert_int_equal(s->arch, ARCH_LLAMA);
    assert_int_equal(gguf_n_tensors(model_gguf(m)), 272);
    assert_non_null(model_template(m));
    assert_null(model_fim(m));
    model_close(m);
}

static void read_page(buf *page) {
    err e = {0};
    assert_int_equal(file_read("docs/models.md", 1 << 20, page, &e), 0);
}

static void the_page_shows_the_summary_of_the_small_model(void **state) {
    (void)state;
    char path[4096];
    if (!find_small_model(path, sizeof path)) {
        print_message("skip: no " SMALL_MODEL " (set TIERGATE_TEST_MODEL)\n");
        skip();
    }
    buf summary = {0}, shown = {0}, page = {0};
    err e = {0};
    read_page(&page);
    assert_int_equal(model_check(path, &summary, &e), 0);
    for (const char *line = summary.data, *end; (end = strchr(line, '\n')); line = end + 1)
        buf_printf(&shown, "    %.*s\n", (int)(end - line), line);
    if (!strstr(page.data, shown.data))
        fail_msg("docs/models.md has another summary than\n%s", shown.data);
    buf_release(&summary);
    buf_release(&shown);
    buf_release(&page);
}

static void the_page_lists_every_template_name(void **state) {
    (void)state;
    buf page = {0};
    read_page(&page);
    for (const char *name = template_names(); *name;) {
        size_t n = strcspn(name, ",");
        char row[64];
        snprintf(row, sizeof row, "\n| `%.*s` |", (int)n, name);
        if (!strstr(page.data, row))
            fail_msg("docs/models.md has no row for %.*s", (int)n, name);
        name += n + strspn(name + n, ", ");
    }
    buf_release(&page);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_architecture_yields_its_shape),
        cmocka_unit_test(absent_optional_keys_have_their_defaults),
        cmocka_unit_test(key_length_sets_the_width_of_heads),
        cmocka_unit_test(rope_scaling_is_read_in_all_its_spellings),
        cmocka_unit_test(an_output_matrix_of_its_own_is_seen),
        cmocka_unit_test(a_llama_with_biases_on_all_layers_opens),
        cmocka_unit_test(harmless_values_of_foreign_keys_are_accepted),
        cmocka_unit_test(an_open_model_offers_all_its_parts),
        cmocka_unit_test(an_unknown_template_name_is_refused_with_the_known_ones),
        cmocka_unit_test(an_unknown_template_in_the_file_fails_opening_but_not_the_check),
        cmocka_unit_test(names_that_cannot_be_shown_give_way_to_the_files_stem),
        cmocka_unit_test(the_revision_follows_the_metadata),
        cmocka_unit_test(a_flipped_byte_of_a_weight_changes_the_revision),
        cmocka_unit_test(the_summary_says_what_the_model_is),
        cmocka_unit_test(the_real_small_model_is_what_it_is_known_to_be),
        cmocka_unit_test(the_page_shows_the_summary_of_the_small_model),
        cmocka_unit_test(the_page_lists_every_template_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
