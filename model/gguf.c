// Opens a GGUF file: maps it, reads the header, has metadata and tensor table parsed, and copies
// that head of the file to private memory. Owns the mapping and the descriptor; everything handed
// out is borrowed from them. Any thread after open. Does not judge whether the file is a model we
// can run (model/model_check.c does) and reads no tensor data of its own accord.
#include "model/gguf_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_BYTES 24u // magic, version, number of tensors, number of keys

size_t gguf_position(const gguf *g, const cursor *c) { return (size_t)(c->p - g->base); }

int gguf_ended(const gguf *g, const cursor *c, const char *what, err *e) {
    return err_set(e, ERR_FORMAT, NULL, "the file ends inside %s at offset %zu (it has %zu bytes)",
                   what, gguf_position(g, c), g->n);
}

int gguf_read_string(const gguf *g, cursor *c, uint64_t least, uint64_t most, const char *what,
                     gguf_string *out, err *e) {
    size_t at = gguf_position(g, c);
    uint64_t n = cursor_u64(c);
    if (c->failed)
        return gguf_ended(g, c, what, e);
    if (n < least)
        return err_set(e, ERR_FORMAT, NULL, "%s at offset %zu is empty", what, at);
    if (n > most)
        return err_set(e, ERR_FORMAT, NULL, "%s at offset %zu claims %llu bytes; the limit is %llu",
                       what, at, (unsigned long long)n, (unsigned long long)most);
    out->p = cursor_bytes(c, (size_t)n);
    out->n = (size_t)n;
    return c->failed ? gguf_ended(g, c, what, e) : 0;
}

int gguf_string_compare(gguf_string a, gguf_string b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int order = n ? memcmp(a.p, b.p, n) : 0;
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

bool gguf_is_printable(gguf_string s) {
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] <= ' ' || s.p[i] > '~')
            return false;
    return true;
}

int gguf_shown(gguf_string s) { return s.n < 80 ? (int)s.n : 80; }

static int check_version(gguf *g, err *e) {
    if (g->version == 2 || g->version == 3)
        return 0;
    uint32_t swapped = __builtin_bswap32(g->version);
    if (swapped >= 1 && swapped <= 255)
        return err_set(e, ERR_FORMAT, NULL,
                       "big-endian GGUF files are not supported (version %u, byte-swapped, at "
                       "offset 4)",
                       swapped);
    return err_set(e, ERR_FORMAT, NULL,
                   "GGUF version %u at offset 4 is not supported; versions 2 and 3 are",
                   g->version);
}

// The parts in file order; g->base and g->n are set, everything else is filled.
static int parse(gguf *g, err *e) {
    cursor c = cursor_over(g->base, g->n);
    const char *magic = cursor_bytes(&c, 4);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return err_set(e, ERR_FORMAT, NULL, "not a GGUF file: it does not begin with \"GGUF\"");
    g->version = cursor_u32(&c);
    if (!c.failed && check_version(g, e))
        return -1;
    uint64_t n_tensors = cursor_u64(&c), n_keys = cursor_u64(&c);
    if (c.failed)
        return gguf_ended(g, &c, "the header", e);
    if (gguf_parse_metadata(g, &c, n_keys, e))
        return -1;
    return gguf_parse_tensors(g, &c, n_tensors, e);
}

// Replaces the mapping's first pages by private memory with the same bytes, at the same address:
// what was checked can then neither change nor vanish. Returns 0 or -1 with errno.
static int pin_head(gguf *g) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n = (g->head_bytes + page - 1) & ~(page - 1);
    void *copy = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return -1;
    memcpy(copy, g->base, n < g->n ? n : g->n);
    if (mprotect(copy, n, PROT_READ) || mremap(copy, n, n, MREMAP_MAYMOVE | MREMAP_FIXED,
                                               (void *)(uintptr_t)g->base) == MAP_FAILED) {
        munmap(copy, n);
        return -1;
    }
    return 0;
}

static int map_file(gguf *g, const char *path, err *e) {
    struct stat s;
    g->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us
    if (g->fd < 0 || fstat(g->fd, &s))
        return err_set(e, ERR_IO, NULL, "cannot open: %s", strerror(errno));
    if (!S_ISREG(s.st_mode))
        return err_set(e, ERR_IO, NULL, "not a regular file");
    if (s.st_size < (off_t)HEADER_BYTES)
        return err_set(e, ERR_FORMAT, NULL,
                       "not a GGUF file: it has %lld bytes, and the header alone takes %u",
                       (long long)s.st_size, HEADER_BYTES);
    g->mtime_s = s.st_mtim.tv_sec;
    g->mtime_ns = s.st_mtim.tv_nsec;
    void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, g->fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, ERR_IO, NULL, "cannot map: %s", strerror(errno));
    g->base = p;
    g->n = (size_t)s.st_size;
    return 0;
}

int gguf_unchanged(const gguf *g, err *e) {
    struct stat s;
    if (g->origin)
        return g->origin->unchanged(g->origin, e);
    if (g->fd < 0)
        return 0;
    if (fstat(g->fd, &s))
        return err_set(e, ERR_IO, NULL, "cannot examine the open file: %s", strerror(errno));
    if ((uint64_t)s.st_size != g->n)
        return err_set(e, ERR_IO, NULL, "the file changed while it was open: %zu bytes became %lld",
                       g->n, (long long)s.st_size);
    if (s.st_mtim.tv_sec != g->mtime_s || s.st_mtim.tv_nsec != g->mtime_ns)
        return err_set(e, ERR_IO, NULL, "the file was written to while it was open");
    return 0;
}

void gguf_load(const gguf *g, const gguf_tensor *t, void *to) {
    g->origin->load(g->origin, (size_t)(t - g->tensors), to);
}

size_t gguf_n_stored(const gguf *g) { return g->origin ? g->origin->n_stored : g->n_tensors; }

uint64_t gguf_stored_bytes(const gguf *g, size_t i) {
    return g->origin ? g->origin->stored_bytes(g->origin, i) : g->tensors[i].bytes;
}

int gguf_read(const gguf *g, size_t i, uint64_t at, void *to, size_t n, err *e) {
    if (g->origin)
        return g->origin->read_stored(g->origin, i, at, to, n, e);
    const gguf_tensor *t = &g->tensors[i];
    const uint8_t *from = (const uint8_t *)t->data + at;
    if (g->fd < 0) {
        memcpy(to, from, n);
        return 0;
    }
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(g->fd, (uint8_t *)to + done, n - done, from - g->base + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set(e, ERR_IO, NULL, "cannot read tensor '%.*s': %s", gguf_shown(t->name),
                           t->name.p, got ? strerror(errno) : "the file was cut short");
        done += (size_t)got;
    }
    return 0;
}

// Parses twice: once to learn how long the head is, and again from the private copy, so that no
// check can be undone by a writer.
static int parse_pinned(gguf *g, err *e) {
    if (parse(g, e))
        return -1;
    if (pin_head(g))
        return err_set(e, ERR_IO, NULL, "cannot copy the metadata: %s", strerror(errno));
    arena_release(&g->memory);
    arena_init(&g->memory);
    return parse(g, e) || gguf_unchanged(g, e) ? -1 : 0;
}

static gguf *gguf_new(void) {
    gguf *g = calloc(1, sizeof *g);
    if (!g)
        fatal("out of memory");
    g->fd = -1;
    arena_init(&g->memory);
    return g;
}

int gguf_open(const char *path, gguf **out, err *e) {
    gguf *g = gguf_new();
    if (map_file(g, path, e) || parse_pinned(g, e)) {
        gguf_close(g);
        return err_wrap(e, "%.200s", path);
    }
    *out = g;
    return 0;
}

int gguf_open_memory(const void *p, size_t n, gguf **out, err *e) {
    gguf *g = gguf_new();
    g->base = p;
    g->n = n;
    if (parse(g, e)) {
        gguf_close(g);
        return -1;
    }
    *out = g;
    return 0;
}

int gguf_open_parts(const void *p, size_t n, const gguf_tensor *tensors, size_t n_tensors,
                    gguf_origin *o, gguf **out, err *e) {
    gguf *g = gguf_new();
    g->base = p;
    g->n = n;
    g->origin = o;
    if (parse(g, e)) {
        gguf_close(g);
        return -1;
    }
    g->version = 0;
    g->n_tensors = n_tensors;
    g->tensors = arena_dup(&g->memory, tensors, n_tensors * sizeof *tensors);
    if (gguf_order_tensors(g, e)) {
        gguf_close(g);
        return -1;
    }
    *out = g;
    return 0;
}

void gguf_close(gguf *g) {
    if (!g)
        return;
    if (g->origin)
        g->origin->close(g->origin);
    if (g->fd >= 0) {
        if (g->base)
            munmap((void *)(uintptr_t)g->base, g->n);
        close(g->fd);
    }
    arena_release(&g->memory);
    free(g);
}

uint32_t gguf_version(const gguf *g) { return g->version; }
uint64_t gguf_file_bytes(const gguf *g) { return g->origin ? g->origin->file_bytes : g->n; }

const void *gguf_head(const gguf *g, size_t *n) {
    *n = g->head_bytes;
    return g->base;
}
