// Adapters in the engine, on every backend: an adapter gives what the merged weights give; beside
// base rows and other adapters each sequence gets what it gets alone, bit for bit; files that do
// not fit are refused with their reason.
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "tests/support/gguf_builder.h"
#include "tests/support/golden.h"
#include "tests/support/hf_writer.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tiny_lora.h"

enum { PROMPT = 37, MADE = 20 };

static engine_adapter *open_adapter(engine *g, const buf *bytes) {
    gguf *file = NULL;
    engine_adapter *a = NULL;
    err e = {0};
    if (gguf_open_memory(bytes->data, bytes->len, &file, &e) ||
        engine_adapter_open(g, file, &a, &e))
        fail_msg("%s", e.message);
    gguf_close(file); // not needed any more
    assert_true(engine_adapter_bytes(a) > 0);
    return a;
}

static model *open_bytes(const buf *bytes) {
    model *m = NULL;
    err e = {0};
    char path[64];
    int fd = memfd_create("model", MFD_CLOEXEC);
    assert_int_equal(write(fd, bytes->data, bytes->len), (ssize_t)bytes->len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (model_open(path, NULL, &m, &e))
        fail_msg("%s", e.message);
    close(fd);
    return m;
}

static sampling_params told(void) {
    sampling_params p = greedy_params(ENGINE_TOP);
    return p;
}

static void generate(engine *g, const engine_adapter *a, const int32_t *ids,
                     const sampling_params *p, engine_sampled *out) {
    engine_seq *s = tiny_seq(g, p, ids, PROMPT, 0, NULL);
    engine_seq_adapt(s, a);
    engine_row row = {.seq = s, .tokens = ids, .n = PROMPT, .sample = true};
    for (int i = 0; i < MADE; i++) {
        out[i] = tiny_step(g, &row, 1)->sampled[0];
        row = (engine_row){.seq = s, .tokens = &out[i].id, .n = 1, .sample = true};
    }
    engine_seq_free(g, s);
}

static void expect_close(const engine_sampled *a, const engine_sampled *b) {
    assert_int_equal(a->id, b->id);
    assert_int_equal(a->n_top, b->n_top);
    for (int i = 0; i < a->n_top; i++) {
        assert_int_equal(a->top[i].id, b->top[i].id);
        assert_true(fabsf(a->top[i].logprob - b->top[i].logprob) < 1e-3f);
    }
}

static void an_adapter_is_what_merging_it_would_be(void **state) {
    static const char *const models[] = {"llama", "qwen2", "qwen3"};
    static const char *const only[] = {NULL, "attn_k", "ffn_up", "attn_output", "ffn_down"};
    for (size_t m = 0; m < 3; m++)
        for (size_t k = 0; k < sizeof only / sizeof *only; k++) {
            const tiny_model *t = tiny_model_find(models[m]);
            tiny_engine f = {0}, merged = {0};
            buf lora = {0}, bytes = {0};
            err e = {0};
            int32_t ids[PROMPT];
            engine_sampled got[MADE], wanted[MADE], plain[MADE];
            sampling_params p = told();
            engine_config c = tiny_config(*state, 2);
            tiny_engine_open(&f, models[m], c);
            tiny_ids(ids, PROMPT, 3);
            tiny_lora_bytes(t, 5, 77, WT_F32, only[k], &lora);
            tiny_model_bytes(t, &bytes);
            tiny_lora_merge(&bytes, &lora);
            merged.m = open_bytes(&bytes);
            assert_int_equal(engine_open(merged.m, &c, &merged.g, &e), 0);
            engine_adapter *a = open_adapter(f.g, &lora);
            generate(f.g, a, ids, &p, got);
            generate(f.g, NULL, ids, &p, plain);
            generate(merged.g, NULL, ids, &p, wanted);
            for (int i = 0; i < MADE; i++)
                expect_close(&got[i], &wanted[i]);
            assert_memory_not_equal(&got[0].top, &plain[0].top, sizeof plain[0].top);
            engine_adapter_close(a);
            tiny_engine_close(&f);
            tiny_engine_close(&merged);
            buf_release(&lora);
            buf_release(&bytes);
        }
}

// Hugging Face's Llama files hold the heads' rows in another order than GGUF's, adapters too.
static void the_base_may_be_a_directory(void **state) {
    char dir[] = "/tmp/tiergate-lora-XXXXXX", command[64];
    tiny_engine f = {0}, hf = {0};
    buf lora = {0};
    err e = {0};
    int32_t ids[PROMPT];
    engine_sampled got[MADE], wanted[MADE];
    sampling_params p = told();
    engine_config c = tiny_config(*state, 1);
    tiny_engine_open(&f, "llama", c);
    assert_non_null(mkdtemp(dir));
    hf_write_model(f.m, dir, WT_F32);
    if (model_open(dir, NULL, &hf.m, &e) || engine_open(hf.m, &c, &hf.g, &e))
        fail_msg("%s", e.message);
    tiny_lora_bytes(tiny_model_find("llama"), 5, 77, WT_F32, NULL, &lora);
    engine_adapter *a = open_adapter(f.g, &lora), *b = open_adapter(hf.g, &lora);
    tiny_ids(ids, PROMPT, 3);
    generate(f.g, a, ids, &p, wanted);
    generate(hf.g, b, ids, &p, got);
    for (int i = 0; i < MADE; i++)
        expect_close(&got[i], &wanted[i]);
    engine_adapter_close(a);
    engine_adapter_close(b);
    tiny_engine_close(&f);
    tiny_engine_close(&hf);
    buf_release(&lora);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

// Four sequences: adapter a, none, adapter b, a again; prompts in chunks of a length each.
static void company_changes_no_bit(void **state) {
    static const char *const models[] = {"q4_1", "llama"};
    for (size_t m = 0; m < 2; m++) {
        tiny_engine f = {0};
        buf bytes_a = {0}, bytes_b = {0};
        int32_t ids[4][PROMPT], next[4];
        engine_sampled alone[4][MADE];
        sampling_params p = tiny_lively();
        tiny_engine_open(&f, models[m], tiny_config(*state, 2));
        tiny_lora_bytes(tiny_model_find(models[m]), 4, 5, WT_BF16, NULL, &bytes_a);
        tiny_lora_bytes(tiny_model_find(models[m]), 9, 6, WT_F32, "attn", &bytes_b);
        engine_adapter *a = open_adapter(f.g, &bytes_a), *b = open_adapter(f.g, &bytes_b);
        const engine_adapter *of[4] = {a, NULL, b, a};
        engine_seq *s[4];
        for (uint32_t i = 0; i < 4; i++) {
            tiny_ids(ids[i], PROMPT, 10 + i);
            generate(f.g, of[i], ids[i], &p, alone[i]);
        }
        for (int i = 0; i < 4; i++) {
            s[i] = tiny_seq(f.g, &p, ids[i], PROMPT, 0, NULL);
            engine_seq_adapt(s[i], of[i]);
        }
        engine_row rows[4];
        int made[4] = {0};
        while (made[0] + made[1] + made[2] + made[3] < 4 * MADE) {
            int n = 0, who[4];
            for (int i = 3; i >= 0; i--) { // and not in the order they were made
                int at = engine_seq_length(s[i]), left = PROMPT - at, chunk = 5 + 4 * i;
                if (made[i] == MADE)
                    continue;
                who[n] = i;
                rows[n++] =
                    left > 0
                        ? (engine_row){.seq = s[i],
                                       .tokens = ids[i] + at,
                                       .n = left < chunk ? left : chunk,
                                       .sample = left <= chunk}
                        : (engine_row){.seq = s[i], .tokens = &next[i], .n = 1, .sample = true};
            }
            const engine_result *r = tiny_step(f.g, rows, n);
            for (int k = 0; k < n; k++)
                if (rows[k].sample) {
                    int i = who[k];
                    tiny_assert_same(&r->sampled[k], &alone[i][made[i]++], 1);
                    next[i] = r->sampled[k].id;
                }
        }
        for (int i = 0; i < 4; i++)
            engine_seq_free(f.g, s[i]);
        engine_adapter_close(a);
        engine_adapter_close(b);
        tiny_engine_close(&f);
        buf_release(&bytes_a);
        buf_release(&bytes_b);
    }
}

static void a_fork_keeps_the_adapter(void **state) {
    tiny_engine f = {0};
    buf bytes = {0};
    int32_t ids[PROMPT], out[2][MADE];
    sampling_params p = greedy_params(-1);
    err e = {0};
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    tiny_lora_bytes(tiny_model_find("llama"), 4, 5, WT_F16, NULL, &bytes);
    engine_adapter *a = open_adapter(f.g, &bytes);
    tiny_ids(ids, PROMPT, 3);
    engine_seq *s = tiny_seq(f.g, &p, ids, PROMPT, 0, NULL), *t = NULL;
    engine_seq_adapt(s, a);
    engine_row row = {.seq = s, .tokens = ids, .n = PROMPT - 1};
    tiny_step(f.g, &row, 1);
    assert_int_equal(engine_seq_fork(f.g, s, 1, &t, &e), 0);
    tiny_generate(f.g, s, ids + PROMPT - 1, 1, out[0], MADE);
    tiny_generate(f.g, t, ids + PROMPT - 1, 1, out[1], MADE);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    engine_seq_free(f.g, s);
    engine_seq_free(f.g, t);
    engine_adapter_close(a);
    tiny_engine_close(&f);
    buf_release(&bytes);
}

typedef struct opener {
    engine *g;
    const buf *bytes;
    engine_adapter *a;
    atomic_bool done;
} opener;

static void *open_some(void *arg) {
    opener *o = arg;
    for (int i = 0; i < 4; i++) {
        engine_adapter_close(o->a);
        o->a = open_adapter(o->g, o->bytes);
    }
    atomic_store(&o->done, true);
    return NULL;
}

// On more than one thread, whose team can do one thing at a time.
static void an_adapter_is_opened_beside_steps(void **state) {
    tiny_engine f = {0};
    buf bytes = {0};
    int32_t ids[PROMPT];
    engine_sampled before[MADE], beside[MADE];
    sampling_params p = told();
    tiny_engine_open(&f, "llama", tiny_config(*state, 2));
    tiny_lora_bytes(tiny_model_find("llama"), 4, 5, WT_F32, NULL, &bytes);
    tiny_ids(ids, PROMPT, 3);
    engine_adapter *a = open_adapter(f.g, &bytes);
    generate(f.g, a, ids, &p, before);
    opener o = {.g = f.g, .bytes = &bytes};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, open_some, &o), 0);
    do {
        generate(f.g, a, ids, &p, beside);
        tiny_assert_same(before, beside, MADE);
    } while (!atomic_load(&o.done));
    pthread_join(thread, NULL);
    generate(f.g, o.a, ids, &p, beside);
    tiny_assert_same(before, beside, MADE);
    engine_adapter_close(o.a);
    engine_adapter_close(a);
    tiny_engine_close(&f);
    buf_release(&bytes);
}

// ---- files that do not fit

static gguf_builder builder; // a valid adapter, then spoilt

static void start_file(void) {
    float zeros[512] = {0};
    gguf_builder_init(&builder);
    builder_string(&builder, "general.type", "adapter");
    builder_string(&builder, "general.architecture", "llama");
    builder_string(&builder, "adapter.type", "lora");
    builder_f32(&builder, "adapter.lora.alpha", 16);
    const tiny_model *t = tiny_model_find("llama");
    uint64_t dim = (uint64_t)t->dim;
    builder_put_tensor(&builder, "blk.0.ffn_down.weight.lora_a", WT_F32, (uint64_t)t->intermediate,
                       2, zeros, 8 * (size_t)t->intermediate);
    builder_put_tensor(&builder, "blk.0.ffn_down.weight.lora_b", WT_F32, 2, dim, zeros, 8 * dim);
}

static void expect_refused(engine *g, err_code code, const char *words) {
    buf bytes = {0};
    gguf *file = NULL;
    engine_adapter *a = NULL;
    err e = {0};
    gguf_builder_write(&builder, &bytes);
    if (gguf_open_memory(bytes.data, bytes.len, &file, &e))
        fail_msg("%s", e.message);
    assert_int_equal(engine_adapter_open(g, file, &a, &e), -1);
    assert_int_equal(e.code, code);
    if (!strstr(e.message, words))
        fail_msg("'%s' does not say '%s'", e.message, words);
    gguf_close(file);
    buf_release(&bytes);
    gguf_builder_release(&builder);
    start_file();
}

static void files_that_do_not_fit_are_refused(void **state) {
    tiny_engine f = {0};
    float zeros[4096] = {0};
    tiny_engine_open(&f, "llama", tiny_config(*state, 1));
    start_file();
    builder_string(&builder, "general.type", "model");
    expect_refused(f.g, ERR_FORMAT, "general.type");
    builder_string(&builder, "adapter.type", "dora");
    expect_refused(f.g, ERR_UNSUPPORTED, "adapter.type");
    builder_string(&builder, "general.architecture", "qwen2");
    expect_refused(f.g, ERR_INVALID, "general.architecture is 'qwen2', the model's is 'llama'");
    builder_remove_key(&builder, "adapter.lora.alpha");
    expect_refused(f.g, ERR_FORMAT, "adapter.lora.alpha");
    builder_remove_tensor(&builder, "blk.0.ffn_down.weight.lora_b");
    expect_refused(f.g, ERR_FORMAT, "blk.0.ffn_down.weight.lora_b is missing");
    builder_remove_tensor(&builder, "blk.0.ffn_down.weight.lora_a");
    expect_refused(f.g, ERR_FORMAT, "blk.0.ffn_down.weight.lora_a is missing");
    builder_remove_tensor(&builder, "blk.0.ffn_down.weight.lora_a");
    builder_remove_tensor(&builder, "blk.0.ffn_down.weight.lora_b");
    builder_put_tensor(&builder, "token_embd.weight.lora_a", WT_F32, 2, 2, zeros, 16);
    expect_refused(f.g, ERR_UNSUPPORTED, "token_embd.weight.lora_a: this cannot be adapted");
    builder_put_tensor(&builder, "blk.7.ffn_up.weight.lora_a", WT_F32, 2, 2, zeros, 16);
    expect_refused(f.g, ERR_UNSUPPORTED, "blk.7.ffn_up.weight.lora_a");
    builder_put_tensor(&builder, "blk.1.attn_q.weight.lora_a", WT_F32, 3, 2, zeros, 24);
    builder_put_tensor(&builder, "blk.1.attn_q.weight.lora_b", WT_F32, 2, 3, zeros, 24);
    expect_refused(f.g, ERR_FORMAT, "blk.1.attn_q.weight.lora_a: shape [3, 2]");
    builder_remove_tensor(&builder, "blk.0.ffn_down.weight.lora_b");
    builder_put_tensor(&builder, "blk.0.ffn_down.weight.lora_b", WT_F32, 3, 4, zeros, 48);
    expect_refused(f.g, ERR_FORMAT, "blk.0.ffn_down.weight.lora_b: shape [3, 4]");
    gguf_builder_release(&builder);
    tiny_engine_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ALL(an_adapter_is_what_merging_it_would_be),
        ON("ref", the_base_may_be_a_directory),
        ALL(company_changes_no_bit),
        ALL(a_fork_keeps_the_adapter),
        ALL(an_adapter_is_opened_beside_steps),
        ON("ref", files_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
