// Opens a model directory: configuration, tokenizer, shards and their index, in this order. Owns
// the shards and the made metadata until the gguf is closed; any thread after open. Reads no
// weights of its own accord.
#include "model/hf_internal.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INDEX "model.safetensors.index.json"
#define SINGLE "model.safetensors"
#define MAX_INDEX_BYTES (32u << 20)

bool hf_is_directory(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

// ---- metadata

static void put_key(hf_head *h, const char *key, gguf_type type) {
    buf_put_u64(&h->keys, strlen(key));
    buf_puts(&h->keys, key);
    buf_put_u32(&h->keys, (uint32_t)type);
    h->n_keys++;
}

void hf_put_u64(hf_head *h, const char *key, uint64_t v) {
    put_key(h, key, GGUF_U64);
    buf_put_u64(&h->keys, v);
}

void hf_put_f64(hf_head *h, const char *key, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(h, key, GGUF_F64);
    buf_put_u64(&h->keys, bits);
}

void hf_put_bool(hf_head *h, const char *key, bool v) {
    put_key(h, key, GGUF_BOOL);
    buf_put_u8(&h->keys, v);
}

void hf_put_text(hf_head *h, const char *key, const char *s) {
    put_key(h, key, GGUF_STRING);
    hf_put_element(h, s, strlen(s));
}

void hf_put_array(hf_head *h, const char *key, gguf_type element, uint64_t n) {
    put_key(h, key, GGUF_ARRAY);
    buf_put_u32(&h->keys, (uint32_t)element);
    buf_put_u64(&h->keys, n);
}

void hf_put_element(hf_head *h, const char *p, size_t n) {
    buf_put_u64(&h->keys, n);
    buf_put(&h->keys, p, n);
}

static void finish_head(const hf_head *h, buf *out) {
    buf_puts(out, "GGUF");
    buf_put_u32(out, 3);
    buf_put_u64(out, 0); // tensors are not behind this head
    buf_put_u64(out, h->n_keys);
    buf_put(out, h->keys.data, h->keys.len);
}

// ---- shards

static int open_shard(hf *d, const char *directory, const char *name, err *e) {
    buf path = {0};
    buf_printf(&path, "%s/%s", directory, name);
    int rc = safetensors_open(path.data, &d->shards[d->n_shards], e);
    buf_release(&path);
    if (rc)
        return -1;
    d->origin.file_bytes += safetensors_file_bytes(d->shards[d->n_shards]);
    d->first[d->n_shards + 1] =
        d->first[d->n_shards] + 1 + safetensors_count(d->shards[d->n_shards]);
    d->n_shards++;
    return 0;
}

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The files that the index names, each once, in the order of their names. Borrowed from map.
static int list_shards(const json_t *map, const char **names, size_t *n, err *e) {
    const char *tensor;
    json_t *v;
    size_t n_all = json_object_size(map), kept = 0;
    const char **all = malloc((n_all + 1) * sizeof *all);
    if (!all)
        fatal("out of memory");
    n_all = 0;
    int rc = 0;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v) {
        const char *name = json_string_value(v);
        if (!name || !*name || strchr(name, '/') || name[0] == '.')
            rc = err_set(e, ERR_FORMAT, NULL,
                         INDEX
                         ": weight_map names no file of this directory for one of its tensors");
        else
            all[n_all++] = name;
    }
    qsort(all, n_all, sizeof *all, compare_texts);
    for (size_t i = 0; i < n_all && !rc; i++) {
        if (i > 0 && !strcmp(all[i], all[i - 1]))
            continue;
        if (kept == HF_MAX_SHARDS)
            rc = err_set(e, ERR_FORMAT, NULL, INDEX ": weight_map names more than %d files",
                         HF_MAX_SHARDS);
        else
            names[kept++] = all[i];
    }
    free(all);
    *n = kept;
    return rc;
}

// Every tensor of the index is in its file, and every tensor of a file is in the index.
static int check_index(const hf *d, const json_t *map, const char *const *names, err *e) {
    size_t n = 0;
    for (size_t i = 0; i < d->n_shards; i++) {
        n += safetensors_count(d->shards[i]);
        for (size_t k = 0; k < safetensors_count(d->shards[i]); k++) {
            const char *tensor = safetensors_at(d->shards[i], k)->name;
            const char *said = json_string_value(json_object_get(map, tensor));
            if (!said || strcmp(said, names[i]))
                return err_set(e, ERR_FORMAT, NULL,
                               "%.80s holds tensor '%.80s', which " INDEX " does not place there",
                               names[i], tensor);
        }
    }
    if (n != json_object_size(map))
        return err_set(e, ERR_FORMAT, NULL,
                       INDEX ": weight_map has %zu tensors, but the files have %zu",
                       json_object_size(map), n);
    return 0;
}

static int open_indexed(hf *d, const char *directory, const json_t *index, err *e) {
    const char *names[HF_MAX_SHARDS];
    size_t n = 0;
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(e, ERR_FORMAT, NULL, INDEX ": weight_map is missing or no object");
    if (list_shards(map, names, &n, e))
        return -1;
    for (size_t i = 0; i < n; i++)
        if (open_shard(d, directory, names[i], e))
            return -1;
    return check_index(d, map, names, e);
}

static bool has_file(const char *directory, const char *name) {
    struct stat s;
    buf path = {0};
    buf_printf(&path, "%s/%s", directory, name);
    bool has = stat(path.data, &s) == 0;
    buf_release(&path);
    return has;
}

static int open_shards(hf *d, const char *directory, err *e) {
    json_t *index = NULL;
    if (has_file(directory, SINGLE))
        return open_shard(d, directory, SINGLE, e);
    if (json_file_read(directory, INDEX, MAX_INDEX_BYTES, false, JSON_NUMBERS_EXACT, &index, e))
        return -1;
    int rc = index ? open_indexed(d, directory, index, e)
                   : err_set(e, ERR_IO, NULL,
                             "there is neither " SINGLE " nor " INDEX
                             ": weights are read from safetensors only");
    json_decref(index);
    return rc;
}

static int each_shard(const char *directory, int (*each)(void *ctx, const char *name), void *ctx,
                      err *e) {
    json_t *index = NULL;
    const char *names[HF_MAX_SHARDS];
    size_t n = 0;
    if (has_file(directory, SINGLE))
        return each(ctx, SINGLE);
    if (json_file_read(directory, INDEX, MAX_INDEX_BYTES, true, JSON_NUMBERS_EXACT, &index, e))
        return -1;
    int rc = list_shards(json_object_get(index, "weight_map"), names, &n, e) || each(ctx, INDEX);
    for (size_t i = 0; i < n && !rc; i++)
        rc = each(ctx, names[i]);
    json_decref(index);
    return rc ? -1 : 0;
}

int hf_each_file(const char *directory, int (*each)(void *ctx, const char *name), void *ctx,
                 err *e) {
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (has_file(directory, files[i]) && each(ctx, files[i]))
            return -1;
    return each_shard(directory, each, ctx, e);
}

const safetensor *hf_find(const hf *d, const char *name, const safetensors **shard) {
    for (size_t i = 0; i < d->n_shards; i++) {
        const safetensor *t = safetensors_find(d->shards[i], name);
        if (t) {
            *shard = d->shards[i];
            return t;
        }
    }
    return NULL;
}

// ---- as the origin of a gguf

static void origin_close(gguf_origin *o) {
    hf *d = (hf *)o;
    for (size_t i = 0; i < d->n_shards; i++)
        safetensors_close(d->shards[i]);
    buf_release(&d->head);
    arena_release(&d->memory);
    free(d);
}

static int origin_unchanged(const gguf_origin *o, err *e) {
    const hf *d = (const hf *)o;
    for (size_t i = 0; i < d->n_shards; i++)
        if (safetensors_unchanged(d->shards[i], e))
            return -1;
    return 0;
}

// Part i of a shard: its head is part 0, its tensors follow.
static const safetensors *stored_part(const hf *d, size_t i, uint64_t *at, uint64_t *bytes) {
    size_t s = 0;
    while (i >= d->first[s + 1])
        s++;
    const safetensors *f = d->shards[s];
    i -= d->first[s];
    *at = i ? safetensors_at(f, i - 1)->offset : 0;
    *bytes = i ? safetensors_at(f, i - 1)->bytes : safetensors_head_bytes(f);
    return f;
}

static uint64_t origin_stored_bytes(const gguf_origin *o, size_t i) {
    uint64_t at, bytes;
    stored_part((const hf *)o, i, &at, &bytes);
    return bytes;
}

static int origin_read_stored(const gguf_origin *o, size_t i, uint64_t at, void *to, size_t n,
                              err *e) {
    uint64_t start, bytes;
    const safetensors *f = stored_part((const hf *)o, i, &start, &bytes);
    return safetensors_read(f, start + at, to, n, e);
}

static void origin_load(const gguf_origin *o, size_t tensor, void *to) {
    hf_load_packed(((const hf *)o)->packed[tensor], to);
}

// ---- opening

// The directory's own name; config.json has none.
static void put_name(const char *directory, hf_head *h) {
    char path[PATH_MAX];
    const char *slash = realpath(directory, path) ? strrchr(path, '/') : NULL;
    if (slash && slash[1])
        hf_put_text(h, "general.name", slash + 1);
}

static int read_parts(hf *d, const char *directory, err *e) {
    hf_head h = {0};
    put_name(directory, &h);
    int rc = hf_read_config(directory, &d->config, &h, e) ||
                     hf_read_tokenizer(directory, &d->config, &h, e) ||
                     open_shards(d, directory, e) || hf_map_tensors(d, e)
                 ? -1
                 : 0;
    d->origin.n_stored = d->first[d->n_shards];
    finish_head(&h, &d->head);
    buf_release(&h.keys);
    return rc;
}

// A shard's message begins with its path already.
static int name_directory(const char *directory, err *e) {
    if (e && !strncmp(e->message, directory, strlen(directory)))
        return -1;
    return err_wrap(e, "%.200s", directory);
}

int hf_open(const char *directory, gguf **out, err *e) {
    hf *d = calloc(1, sizeof *d);
    if (!d)
        fatal("out of memory");
    arena_init(&d->memory);
    d->origin = (gguf_origin){.close = origin_close,
                              .unchanged = origin_unchanged,
                              .stored_bytes = origin_stored_bytes,
                              .read_stored = origin_read_stored,
                              .load = origin_load};
    if (read_parts(d, directory, e)) {
        origin_close(&d->origin);
        return name_directory(directory, e);
    }
    if (gguf_open_parts(d->head.data, d->head.len, d->tensors, d->n_tensors, &d->origin, out, e)) {
        hf_explain(e);
        return err_wrap(e, "%.200s", directory);
    }
    return 0;
}

// ---- messages

void hf_replace(err *e, const char *from, const char *to) {
    size_t n = strlen(from);
    buf text = {0};
    const char *at = e->message, *found;
    if (!strstr(at, from))
        return;
    for (; (found = strstr(at, from)); at = found + n) {
        buf_put(&text, at, (size_t)(found - at));
        buf_puts(&text, to);
    }
    buf_puts(&text, at);
    snprintf(e->message, sizeof e->message, "%s", text.data);
    buf_release(&text);
}

void hf_explain(err *e) {
    static const char *const keys[][2] = {
        {"llama.", ""},
        {"qwen2.", ""},
        {"qwen3.", ""},
        {"block_count", "num_hidden_layers"},
        {"context_length", "max_position_embeddings"},
        {"embedding_length", "hidden_size"},
        {"feed_forward_length", "intermediate_size"},
        {"attention.head_count_kv", "num_key_value_heads"},
        {"attention.head_count", "num_attention_heads"},
        {"attention.key_length", "head_dim"},
        {"attention.value_length", "head_dim"},
        {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
        {"attention.sliding_window", "sliding_window"},
        {"rope.freq_base", "rope_theta"},
        {"rope.scaling.yarn_", "rope_scaling."},
        {"rope.scaling.attn_factor", "rope_scaling.attention_factor"},
        {"rope.scaling.", "rope_scaling."},
        {"tokenizer.ggml.tokens", "tokenizer.json: model.vocab"},
        {"tokenizer.ggml.merges", "tokenizer.json: model.merges"},
        {"tokenizer.chat_template", "chat_template"},
    };
    if (!e)
        return;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        hf_replace(e, keys[i][0], keys[i][1]);
    hf_explain_tensor(e);
}
