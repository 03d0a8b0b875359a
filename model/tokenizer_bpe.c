// Byte-pair merges: reads them into a hash table of pairs and merges a word's bytes, always the
// lowest rank first and of equal ones the leftmost, as Hugging Face's BPE does. Short words by
// scanning, long ones with a heap over a linked list, O(n log n). The table is read-only after
// open; a call's memory is its bpe_scratch. Does not cut text into words (tokenizer_pre.c).
#include "model/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

#define SCANNED_BYTES 40 // up to here scanning is faster than a heap
#define WHOLE_BYTES 1024 // longer tokens are merged when a text has them
#define NO_PAIR UINT64_MAX
#define NO_RANK UINT32_MAX

// ---- the table

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t pair_slot(const tokenizer *t, uint64_t pair) {
    uint64_t h = (pair ^ t->hash_seed) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h *= (t->hash_seed | 1);
    return (size_t)(h ^ h >> 29) & t->merges.mask;
}

static const merge *find_merge(const tokenizer *t, int32_t left, int32_t right) {
    uint64_t pair = pair_of(left, right);
    for (size_t i = pair_slot(t, pair);; i = (i + 1) & t->merges.mask) {
        const merge *m = &t->merges.slots[i];
        if (m->pair == pair)
            return m;
        if (m->pair == NO_PAIR)
            return NULL;
    }
}

static void put_merge(tokenizer *t, merge m) { // a pair that comes twice: the later rank counts
    size_t i = pair_slot(t, m.pair);
    while (t->merges.slots[i].pair != NO_PAIR && t->merges.slots[i].pair != m.pair)
        i = (i + 1) & t->merges.mask;
    t->merges.slots[i] = m;
}

static int bad_merge(err *e, uint64_t i, const char *what, const char *p, size_t n) {
    return err_set(e, ERR_FORMAT, "tokenizer.ggml.merges",
                   "tokenizer.ggml.merges: merge %llu %s \"%.*s\"", (unsigned long long)i, what,
                   (int)(n < 64 ? n : 64), p);
}

// "left right", both and their sum in the vocabulary, none of them a control token.
static int read_merge(tokenizer *t, gguf_string s, uint64_t rank, buf *joined, err *e) {
    const char *space = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
    if (!space)
        return bad_merge(e, rank, "has no space:", s.p, s.n);
    size_t n_left = (size_t)(space - s.p), n_right = s.n - n_left - 1;
    buf_clear(joined);
    buf_put(joined, s.p, n_left);
    buf_put(joined, space + 1, n_right);
    const gguf_string names[3] = {{s.p, n_left}, {space + 1, n_right}, {joined->data, joined->len}};
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i] = vocab_find(t, names[i].p, names[i].n);
        if (ids[i] < 0)
            return bad_merge(e, rank, "names no token of the vocabulary:", names[i].p, names[i].n);
        if (vocab_is_control(t, ids[i]))
            return bad_merge(e, rank, "would make text a control token:", names[i].p, names[i].n);
    }
    put_merge(t, (merge){pair_of(ids[0], ids[1]), (uint32_t)rank, ids[2]});
    return 0;
}

static int read_merges(tokenizer *t, const gguf *g, err *e) {
    const char *key = "tokenizer.ggml.merges";
    gguf_type element;
    uint64_t n;
    if (!gguf_array(g, key, &element, &n) || element != GGUF_STRING || n >= NO_RANK)
        return err_set(e, ERR_FORMAT, key, "%s is missing or not an array of strings", key);
    size_t slots = 16;
    while (slots < n + n / 2)
        slots *= 2;
    t->merges.slots = malloc(slots * sizeof *t->merges.slots);
    if (!t->merges.slots)
        fatal("out of memory: %zu merges", (size_t)n);
    memset(t->merges.slots, 0xff, slots * sizeof *t->merges.slots);
    t->merges.mask = slots - 1;
    buf joined = {0};
    int rc = 0;
    for (uint64_t i = 0; i < n && !rc; i++) {
        gguf_string s;
        rc = gguf_array_string(g, key, i, &s) ? read_merge(t, s, i, &joined, e)
                                              : bad_merge(e, i, "is not there", "", 0);
    }
    buf_release(&joined);
    return rc;
}

// ---- short words

typedef struct short_word {
    int32_t ids[SCANNED_BYTES];
    uint32_t ranks[SCANNED_BYTES]; // of the pair that starts here
    int32_t made[SCANNED_BYTES];   // what it becomes
    size_t n;
} short_word;

static void rank_pair(const tokenizer *t, short_word *w, size_t i) {
    const merge *m = i + 1 < w->n ? find_merge(t, w->ids[i], w->ids[i + 1]) : NULL;
    w->ranks[i] = m ? m->rank : NO_RANK;
    w->made[i] = m ? m->id : -1;
}

static void merge_at(const tokenizer *t, short_word *w, size_t i) {
    size_t tail = w->n - i - 2; // symbols after the pair
    w->ids[i] = w->made[i];
    memmove(w->ids + i + 1, w->ids + i + 2, tail * sizeof *w->ids);
    memmove(w->ranks + i + 1, w->ranks + i + 2, tail * sizeof *w->ranks);
    memmove(w->made + i + 1, w->made + i + 2, tail * sizeof *w->made);
    w->n--;
    rank_pair(t, w, i);
    if (i)
        rank_pair(t, w, i - 1);
}

static void merge_short(const tokenizer *t, const char *p, size_t n, token_list *out) {
    short_word w = {.n = 0};
    for (size_t i = 0; i < n; i++)
        if (t->bytes[(unsigned char)p[i]] >= 0)
            w.ids[w.n++] = t->bytes[(unsigned char)p[i]];
    for (size_t i = 0; i < w.n; i++)
        rank_pair(t, &w, i);
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i < w.n; i++)
            if (w.ranks[i] < w.ranks[best])
                best = i;
        if (w.n < 2 || w.ranks[best] == NO_RANK)
            break;
        merge_at(t, &w, best);
    }
    for (size_t i = 0; i < w.n; i++)
        token_list_push(out, w.ids[i]);
}

// ---- long words: heap entries are rank << 32 | position; one whose pair has changed since is
// recognised by the rank, which belongs to one pair only

typedef struct long_word {
    int32_t *id, *previous, *next; // by position; id -1: merged into the one before
} long_word;

static void heap_push(bpe_scratch *s, uint64_t entry) {
    if (s->n_heap == s->heap_cap) {
        size_t cap = s->heap_cap ? s->heap_cap * 2 : 1024;
        uint64_t *heap = realloc(s->heap, cap * sizeof *heap);
        if (!heap)
            fatal("out of memory: %zu pairs of a word", cap);
        s->heap = heap;
        s->heap_cap = cap;
    }
    size_t i = s->n_heap++;
    for (; i && s->heap[(i - 1) / 2] > entry; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = entry;
}

static uint64_t heap_pop(bpe_scratch *s) {
    uint64_t top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= last)
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return top;
}

static void push_pair(const tokenizer *t, bpe_scratch *s, const long_word *w, int32_t at) {
    int32_t next = at < 0 ? -1 : w->next[at];
    const merge *m = next < 0 ? NULL : find_merge(t, w->id[at], w->id[next]);
    if (m)
        heap_push(s, (uint64_t)m->rank << 32 | (uint32_t)at);
}

static long_word take_symbols(bpe_scratch *s, size_t n) {
    if (n > s->cap) {
        free(s->symbols);
        s->symbols = malloc(3 * n * sizeof *s->symbols);
        if (!s->symbols)
            fatal("out of memory: a word of %zu bytes", n);
        s->cap = n;
    }
    return (long_word){s->symbols, s->symbols + s->cap, s->symbols + 2 * s->cap};
}

static void merge_heap(const tokenizer *t, bpe_scratch *s, const long_word *w) {
    while (s->n_heap) {
        uint64_t entry = heap_pop(s);
        int32_t at = (int32_t)(uint32_t)entry, next = w->next[at];
        const merge *m = w->id[at] < 0 || next < 0 ? NULL : find_merge(t, w->id[at], w->id[next]);
        if (!m || m->rank != entry >> 32)
            continue;
        w->id[at] = m->id;
        w->id[next] = -1;
        w->next[at] = w->next[next];
        if (w->next[at] >= 0)
            w->previous[w->next[at]] = at;
        push_pair(t, s, w, at);
        push_pair(t, s, w, w->previous[at]);
    }
}

static void merge_long(const tokenizer *t, bpe_scratch *s, const char *p, size_t n,
                       token_list *out) {
    long_word w = take_symbols(s, n);
    int32_t used = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = t->bytes[(unsigned char)p[i]];
        if (id < 0)
            continue;
        w.id[used] = id;
        w.previous[used] = used - 1;
        w.next[used] = used + 1;
        used++;
    }
    if (!used)
        return;
    w.next[used - 1] = -1;
    s->n_heap = 0;
    for (int32_t i = 0; i < used; i++)
        push_pair(t, s, &w, i);
    merge_heap(t, s, &w);
    for (int32_t i = 0; i >= 0; i = w.next[i])
        token_list_push(out, w.id[i]);
}

static void merge_word(const tokenizer *t, bpe_scratch *s, const char *p, size_t n,
                       token_list *out) {
    if (n <= SCANNED_BYTES)
        merge_short(t, p, n, out);
    else
        merge_long(t, s, p, n, out);
}

void bpe_word(const tokenizer *t, bpe_scratch *s, const char *p, size_t n, token_list *out) {
    int32_t whole = vocab_find_piece(t, p, n);
    if (whole >= 0)
        token_list_push(out, whole);
    else
        merge_word(t, s, p, n, out);
}

// ---- words that are one token: most of a text. What BPE makes of a token's own bytes is found
// once here, so that bpe_word needs no merging for them.

static void find_whole(tokenizer *t) {
    bpe_scratch s = {0};
    token_list made = {0};
    token_table_init(&t->by_piece, (size_t)t->n_vocab);
    buf bytes = {0};
    for (int32_t id = 0; id < t->n_vocab; id++) {
        gguf_string name = t->names[id];
        size_t n;
        bool added = vocab_is_control(t, id) || t->kind[id] == TOKEN_USER_DEFINED;
        if (!name.n || added || (name.n > WHOLE_BYTES && !t->ignore_merges))
            continue;
        buf_clear(&bytes);
        buf_put(&bytes, name.p, name.n); // as long as what it decodes to, or longer
        if (!vocab_decode_name(name.p, name.n, bytes.data, &n))
            continue;
        made.n = 0;
        if (!t->ignore_merges)
            merge_word(t, &s, bytes.data, n, &made);
        if (t->ignore_merges || (made.n == 1 && made.ids[0] == id))
            token_table_put(&t->by_piece, vocab_hash(t, bytes.data, n), id);
    }
    buf_release(&bytes);
    token_list_release(&made);
    free(s.symbols);
    free(s.heap);
}

int bpe_load(tokenizer *t, const gguf *g, err *e) {
    if (read_merges(t, g, e))
        return -1;
    find_whole(t);
    return 0;
}

void bpe_release(tokenizer *t) { free(t->merges.slots); }
