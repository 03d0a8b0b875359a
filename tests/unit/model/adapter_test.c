// Adapter directories that must be refused, each with the field or tensor it is about; the fixtures
// of PEFT itself are read by tests/unit/engine/adapter_golden_test.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"
#include "model/adapter.h"
#include "model/gguf.h"

static const model_shape shape = {.arch = ARCH_LLAMA, .head_dim = 4};
static char dir[64];

static int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/tiergate-adapter-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

static void put_file(const char *name, const void *p, size_t n) {
    char path[128];
    err e = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write_atomic(path, 0600, p, n, &e), 0);
}

static void put_config(const char *text) { put_file("adapter_config.json", text, strlen(text)); }

// One tensor of `rows` x 2 floats that count from 0.
static void put_tensor(const char *name, const char *dtype, int rows) {
    buf b = {0};
    char head[512];
    uint64_t n = (uint64_t)snprintf(
        head, sizeof head, "{\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,2],\"data_offsets\":[0,%d]}}",
        name, dtype, rows, 8 * rows);
    buf_put(&b, &n, sizeof n);
    buf_put(&b, head, n);
    for (int i = 0; i < 2 * rows; i++) {
        float v = (float)i;
        buf_put(&b, &v, sizeof v);
    }
    put_file("adapter_model.safetensors", b.data, b.len);
    buf_release(&b);
}

#define PLAIN "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":3"
#define Q_B "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

static void expect_refused(const char *words) {
    buf out = {0};
    err e = {0};
    assert_int_equal(adapter_read(dir, &shape, &out, &e), -1);
    if (!strstr(e.message, words))
        fail_msg("'%s' does not say '%s'", e.message, words);
    buf_release(&out);
}

static void configurations_that_would_be_computed_otherwise_are_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "peft_type is missing"},
        {"{\"peft_type\":\"LORA\",\"lora_alpha\":3}", "r is missing"},
        {"{\"peft_type\":\"LORA\",\"r\":2}", "lora_alpha is missing"},
        {"{\"peft_type\":\"IA3\",\"r\":2,\"lora_alpha\":3}", "peft_type is \"IA3\""},
        {"{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":3}", "r is 0"},
        {"{\"peft_type\":\"LORA\",\"r\":\"2\",\"lora_alpha\":3}", "r is no whole number"},
        {"{" PLAIN ",\"use_dora\":true}", "use_dora is true"},
        {"{" PLAIN ",\"bias\":\"all\"}", "bias is \"all\""},
        {"{" PLAIN ",\"lora_bias\":true}", "lora_bias"},
        {"{" PLAIN ",\"fan_in_fan_out\":true}", "fan_in_fan_out"},
        {"{" PLAIN ",\"modules_to_save\":[\"lm_head\"]}", "modules_to_save"},
        {"{" PLAIN ",\"alpha_pattern\":{\"q_proj\":4}}", "alpha_pattern"},
        {"{" PLAIN ",\"layer_replication\":[[0,1]]}", "layer_replication"},
        {"{" PLAIN ",\"init_lora_weights\":\"pissa_niter_4\"}", "init_lora_weights"},
        {"{" PLAIN ",\"use_rslora\":true,\"rank_pattern\":{\"q_proj\":4}}", "rank_pattern"},
        {"{" PLAIN ",\"alora_invocation_tokens\":[1]}", "alora_invocation_tokens"},
        {"[1]", "adapter_config.json"},
    };
    put_tensor(Q_B, "F32", 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_config(cases[i][0]);
        expect_refused(cases[i][1]);
    }
    put_config("{" PLAIN ",\"use_dora\":false,\"bias\":\"none\",\"modules_to_save\":null,"
               "\"init_lora_weights\":\"gaussian\",\"alpha_pattern\":{},\"rank_pattern\":{}}");
    buf out = {0};
    err e = {0};
    if (adapter_read(dir, &shape, &out, &e))
        fail_msg("%s", e.message);
    buf_release(&out);
}

static void tensors_that_are_no_projections_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias",
        "base_model.model.model.layers.0.self_attn.q_norm.lora_A.weight",
        "base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
        "base_model.model.model.layers.0.mlp.experts.up_proj.lora_A.weight",
    };
    put_config("{" PLAIN "}");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_tensor(names[i], "F32", 4);
        expect_refused(names[i]);
    }
    put_tensor(Q_B, "I64", 2); // 2 x 2 x 8 bytes do not fit: the file itself is wrong
    expect_refused("adapter_model.safetensors");
    put_tensor(Q_B, "F32", 6);
    expect_refused("6 rows are no heads of 4");
}

static void llamas_heads_are_stored_as_pairs(void **state) {
    (void)state;
    static const float wanted[] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    buf out = {0};
    gguf *g = NULL;
    double alpha;
    err e = {0};
    put_config("{" PLAIN "}");
    put_tensor(Q_B, "F32", 8);
    if (adapter_read(dir, &shape, &out, &e) || gguf_open_memory(out.data, out.len, &g, &e))
        fail_msg("%s", e.message);
    const gguf_tensor *t = gguf_find(g, "blk.0.attn_q.weight.lora_b");
    assert_non_null(t);
    assert_int_equal(t->dims[0], 2);
    assert_int_equal(t->dims[1], 8);
    assert_memory_equal(t->data, wanted, sizeof wanted);
    assert_true(gguf_get_f64(g, "adapter.lora.alpha", &alpha) && alpha > 2.9 && alpha < 3.1);
    gguf_close(g);
    buf_release(&out);
}

static void what_is_not_there_is_named(void **state) {
    (void)state;
    char path[128];
    buf out = {0};
    err e = {0};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    assert_int_equal(unlink(path), 0);
    put_config("{" PLAIN "}");
    expect_refused("adapter_model.safetensors");
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    assert_int_equal(unlink(path), 0);
    expect_refused("adapter_config.json");
    assert_int_equal(adapter_read("/nonexistent/x.gguf", &shape, &out, &e), -1);
    assert_non_null(strstr(e.message, "/nonexistent/x.gguf"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configurations_that_would_be_computed_otherwise_are_refused),
        cmocka_unit_test(tensors_that_are_no_projections_are_refused),
        cmocka_unit_test(llamas_heads_are_stored_as_pairs),
        cmocka_unit_test(what_is_not_there_is_named),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
