// Byte-pair merges: reads them into a hash table of pairs and merges a word's bytes, always the
// lowest rank first and of equal ones the leftmost, as Hugging Face's BPE does. Short words by
// scanning, long ones with a heap, O(n log n). The table is read-only after
// open; a call's memory is its bpe_scratch. Does not cut text into words (tokenizer_pre.c).
#include "model/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

#define SCANNED_BYTES 40 // up to here scanning is faster than a heap
#define WHOLE_BYTES 1024 // longer tokens are merged when a text has them
#define KEPT_PAIRS 65536 // a heap of up to this size is kept for the next word
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

// ---- long words
//
// Symbols lie where their bytes were: at its first place a symbol's id, and behind that only
// negative numbers, of which the second and the last place hold minus its length. So a neighbour is
// found from either side, and a place whose symbol was merged into the one before is negative.
//
// The heap holds pairs as rank << 32 | place: those that come before both pairs beside them (a
// rank belongs to one pair of ids only, so places decide between equal ones). The lowest pair of
// all is always among them. Entries that have been overtaken are recognised when they are popped.
// Four bytes a byte for symbols; the heap starts with at most every second pair and hardly grows.

typedef struct long_word {
    int32_t *at; // [n]
    int32_t n;
} long_word;

static int32_t next_of(const long_word *w, int32_t i) { // n: none
    bool one = i + 1 == w->n || w->at[i + 1] >= 0;
    return one ? i + 1 : i - w->at[i + 1];
}

static int32_t previous_of(const long_word *w, int32_t i) { // -1: none
    return !i || w->at[i - 1] >= 0 ? i - 1 : i + w->at[i - 1];
}

static const merge *merge_of(const tokenizer *t, const long_word *w, int32_t i) {
    int32_t next = i < 0 || i >= w->n || w->at[i] < 0 ? w->n : next_of(w, i);
    return next < w->n ? find_merge(t, w->at[i], w->at[next]) : NULL;
}

// The heap's entry for the pair that starts at i, NO_PAIR when there is none.
static uint64_t entry_of(const tokenizer *t, const long_word *w, int32_t i) {
    const merge *m = merge_of(t, w, i);
    return m ? (uint64_t)m->rank << 32 | (uint32_t)i : NO_PAIR;
}

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

static void heap_fill(const tokenizer *t, bpe_scratch *s, const long_word *w) {
    uint64_t before = NO_PAIR, here = entry_of(t, w, 0);
    s->n_heap = 0;
    for (int32_t i = 0; i < w->n; i++) { // every symbol is one place long yet
        uint64_t after = entry_of(t, w, i + 1);
        if (here < before && here < after)
            heap_push(s, here);
        before = here;
        here = after;
    }
}

static void join(long_word *w, int32_t i, int32_t id) {
    int32_t next = next_of(w, i), end = next_of(w, next), length = end - i;
    w->at[i] = id;
    w->at[next] = -length; // negative is enough, unless it is the second or last place
    w->at[i + 1] = -length;
    w->at[end - 1] = -length;
}

// Merges the pair at i. Four pairs may come before both their neighbours now and did not before:
// the two new ones, and the two beside them where the pair that is gone came first.
static void merge_long_at(const tokenizer *t, bpe_scratch *s, long_word *w, int32_t i, int32_t id) {
    int32_t left = previous_of(w, i), right = next_of(w, i);
    int32_t far_left = left > 0 ? previous_of(w, left) : -1, far_right = next_of(w, right);
    uint64_t old_left = entry_of(t, w, left), old_right = entry_of(t, w, right);
    join(w, i, id);
    uint64_t pairs[4] = {entry_of(t, w, far_left), entry_of(t, w, left), entry_of(t, w, i),
                         entry_of(t, w, far_right)};
    for (int k = 1; k <= 2; k++)
        if (pairs[k] < pairs[k - 1] && pairs[k] < pairs[k + 1])
            heap_push(s, pairs[k]);
    if (old_left < pairs[0] && pairs[0] < pairs[1] &&
        pairs[0] < entry_of(t, w, far_left > 0 ? previous_of(w, far_left) : -1))
        heap_push(s, pairs[0]);
    if (old_right < pairs[3] && pairs[3] < pairs[2] &&
        pairs[3] < entry_of(t, w, next_of(w, far_right)))
        heap_push(s, pairs[3]);
}

static void merge_heap(const tokenizer *t, bpe_scratch *s, long_word *w) {
    heap_fill(t, s, w);
    while (s->n_heap) {
        uint64_t entry = heap_pop(s);
        int32_t i = (int32_t)(uint32_t)entry;
        const merge *m = merge_of(t, w, i);
        if (m && m->rank == entry >> 32)
            merge_long_at(t, s, w, i, m->id);
    }
}

static long_word take_symbols(const tokenizer *t, bpe_scratch *s, const char *p, size_t n) {
    if (n > s->cap) {
        free(s->symbols);
        s->symbols = malloc(n * sizeof *s->symbols);
        if (!s->symbols)
            fatal("out of memory: a word of %zu bytes", n);
        s->cap = n;
    }
    long_word w = {s->symbols, 0};
    for (size_t i = 0; i < n; i++) {
        int32_t id = t->bytes[(unsigned char)p[i]];
        if (id >= 0)
            w.at[w.n++] = id;
    }
    return w;
}

// The heap of a huge word is given back before its tokens need memory.
static void trim_heap(bpe_scratch *s) {
    if (s->heap_cap <= KEPT_PAIRS)
        return;
    free(s->heap);
    s->heap = NULL;
    s->heap_cap = 0;
}

static void merge_long(const tokenizer *t, bpe_scratch *s, const char *p, size_t n,
                       token_list *out) {
    long_word w = take_symbols(t, s, p, n);
    merge_heap(t, s, &w);
    trim_heap(s);
    for (int32_t i = 0; i < w.n; i = next_of(&w, i))
        token_list_push(out, w.at[i]);
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
