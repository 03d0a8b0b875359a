// Secrets on disk and what is done with them, on OpenSSL. Owns nothing but the nonce state below (a
// mutex); any thread. Does not rotate: an operator puts a new first line into the file, and a later
// load takes it.
#include "base/secret.h"
#include "base/file.h"
#include "base/id.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ID_BYTES 4
#define NONCE_BYTES 12
#define TAG_BYTES 16
#define FILE_LIMIT 512 // two lines take 150

void secret_wipe(void *p, size_t n) { OPENSSL_cleanse(p, n); }

bool secret_equal(const void *a, const void *b, size_t n) { return CRYPTO_memcmp(a, b, n) == 0; }

// ---- the ring on disk

static int parse_line(char *line, const char *path, int number, secret_ring *ring, err *e) {
    char *end = line;
    errno = 0;
    unsigned long id = strtoul(line, &end, 10);
    if (end == line || *end != ' ' || *line == '-' || errno || id == 0 || id > UINT32_MAX)
        return err_set(e, ERR_FORMAT, NULL, "%s:%d: want \"ID HEX\", ID from 1 to 4294967295", path,
                       number);
    if (ring->n == 2)
        return err_set(e, ERR_FORMAT, NULL, "%s:%d: more than two secrets", path, number);
    if (ring->n == 1 && ring->keys[0].id == id)
        return err_set(e, ERR_FORMAT, NULL, "%s:%d: id %lu is there twice", path, number, id);
    secret *s = &ring->keys[ring->n];
    if (id_unhex(end + 1, s->key, SECRET_BYTES))
        return err_set(e, ERR_FORMAT, NULL, "%s:%d: want 64 hexadecimal digits after the id", path,
                       number);
    s->id = (uint32_t)id;
    ring->n++;
    return 0;
}

static int parse_ring(char *text, const char *path, secret_ring *ring, err *e) {
    int number = 0;
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        number++;
        line[strcspn(line, "\r")] = '\0';
        if (line[0] && parse_line(line, path, number, ring, e))
            return -1;
    }
    if (ring->n == 0)
        return err_set(e, ERR_FORMAT, NULL, "%s holds no secret", path);
    return 0;
}

// Reads the file into text. The bytes pass no buffer that is not wiped.
static int read_text(int fd, const char *path, char text[FILE_LIMIT + 1], err *e) {
    struct stat s;
    if (fstat(fd, &s))
        return err_set(e, ERR_IO, NULL, "cannot read %s: %s", path, strerror(errno));
    if (s.st_mode & 027)
        return err_set(e, ERR_IO, NULL,
                       "%s can be read by others or written by its group (mode %04o); chmod 600 it",
                       path, (unsigned)s.st_mode & 07777);
    size_t n = 0;
    while (n < FILE_LIMIT) {
        ssize_t got = read(fd, text + n, FILE_LIMIT - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(e, ERR_IO, NULL, "cannot read %s: %s", path, strerror(errno));
        if (got == 0)
            break;
        n += (size_t)got;
    }
    text[n] = '\0';
    if (n == FILE_LIMIT || strlen(text) != n)
        return err_set(e, ERR_FORMAT, NULL, "%s is no file of secrets", path);
    return 0;
}

// Makes the file unless another process does so first: then that one's content stands.
static int make_ring(const char *dir, const char *path, err *e) {
    uint8_t key[SECRET_BYTES];
    char hex[2 * SECRET_BYTES + 1], line[128], temporary[PATH_MAX];
    uint32_t id;
    if (file_mkdirs(dir, 0700, e))
        return -1;
    do
        id_random(&id, sizeof id);
    while (id == 0);
    id_random(key, sizeof key);
    id_hex(key, sizeof key, hex);
    int n = snprintf(line, sizeof line, "%u %s\n", id, hex);
    snprintf(temporary, sizeof temporary, "%s.%016llx", path, (unsigned long long)id_random_u64());
    int rc = file_write_atomic(temporary, 0600, line, (size_t)n, e);
    if (!rc && link(temporary, path) && errno != EEXIST)
        rc = err_set(e, ERR_IO, NULL, "cannot make %s: %s", path, strerror(errno));
    unlink(temporary);
    secret_wipe(key, sizeof key);
    secret_wipe(hex, sizeof hex);
    secret_wipe(line, sizeof line);
    return rc;
}

int secret_ring_load(const char *dir, const char *name, bool create, secret_ring *out, err *e) {
    char path[PATH_MAX - 32], text[FILE_LIMIT + 1];
    secret_ring ring = {0};
    int rc = -1;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return err_set(e, ERR_IO, NULL, "path is too long: %.200s", dir);
    if (create && !file_exists(path) && make_ring(dir, path, e))
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, ERR_IO, NULL, "cannot open %s: %s", path, strerror(errno));
    if (!read_text(fd, path, text, e) && !parse_ring(text, path, &ring, e)) {
        *out = ring;
        rc = 0;
    }
    close(fd);
    secret_wipe(text, sizeof text);
    secret_wipe(&ring, sizeof ring);
    return rc;
}

// ---- AES-256-GCM

// 8 random bytes drawn per process, then a counter: no pair repeats under one key however many
// messages are sealed, where 12 random bytes would be safe for 2^32 messages only (SP 800-38D
// section 8.3).
static void next_nonce(uint8_t out[NONCE_BYTES]) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static uint8_t prefix[8];
    static uint32_t counter;
    static pid_t drawn_by; // a forked child must not go on with its parent's
    pthread_mutex_lock(&mutex);
    pid_t mine = getpid();
    if (drawn_by != mine || counter == 0)
        id_random(prefix, sizeof prefix);
    drawn_by = mine;
    counter++;
    memcpy(out, prefix, sizeof prefix);
    memcpy(out + sizeof prefix, &counter, sizeof counter);
    pthread_mutex_unlock(&mutex);
}

static void put_id(uint8_t out[ID_BYTES], uint32_t id) {
    for (int i = 0; i < ID_BYTES; i++)
        out[i] = (uint8_t)(id >> (8 * i));
}

// Fetched once: each implicit fetch takes OpenSSL's locks.
static const EVP_CIPHER *cipher(void) {
    static _Atomic(EVP_CIPHER *) fetched;
    EVP_CIPHER *c = atomic_load(&fetched), *none = NULL;
    if (c)
        return c;
    c = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    if (atomic_compare_exchange_strong(&fetched, &none, c))
        return c;
    EVP_CIPHER_free(c); // another thread was first
    return none;
}

// One direction of the cipher over whole lengths; returns false when OpenSSL refuses (or, opening,
// the tag is wrong).
static bool run_gcm(bool seal, const secret *s, const uint8_t *nonce, const void *aad, size_t n_aad,
                    const uint8_t *in, size_t n, uint8_t *to, uint8_t *tag) {
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    int used;
    uint8_t nothing[TAG_BYTES];
    bool ok = c && EVP_CipherInit_ex(c, cipher(), NULL, s->key, nonce, seal) == 1;
    if (ok && n_aad > 0)
        ok = EVP_CipherUpdate(c, NULL, &used, aad, (int)n_aad) == 1;
    if (ok && n > 0)
        ok = EVP_CipherUpdate(c, to, &used, in, (int)n) == 1;
    if (ok && !seal)
        ok = EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, tag) == 1;
    if (ok)
        ok = EVP_CipherFinal_ex(c, nothing, &used) == 1;
    if (ok && seal)
        ok = EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, tag) == 1;
    EVP_CIPHER_CTX_free(c);
    return ok;
}

int secret_seal(const secret_ring *ring, const void *aad, size_t n_aad, const void *p, size_t n,
                buf *out, err *e) {
    if (ring->n < 1)
        return err_set(e, ERR_INTERNAL, NULL, "no secret to seal with");
    if (n > INT_MAX || n_aad > INT_MAX)
        return err_set(e, ERR_TOO_LARGE, NULL, "%zu bytes are too many to seal", n);
    size_t before = out->len;
    uint8_t *to = buf_extend(out, ID_BYTES + NONCE_BYTES + n + TAG_BYTES);
    uint8_t *nonce = to + ID_BYTES, *text = nonce + NONCE_BYTES;
    put_id(to, ring->keys[0].id);
    next_nonce(nonce);
    if (run_gcm(true, &ring->keys[0], nonce, aad, n_aad, p, n, text, text + n))
        return 0;
    buf_cut(out, before);
    return err_set(e, ERR_INTERNAL, NULL, "OpenSSL cannot seal");
}

static const secret *find_secret(const secret_ring *ring, const uint8_t *id) {
    for (int i = 0; i < ring->n; i++) {
        uint8_t mine[ID_BYTES];
        put_id(mine, ring->keys[i].id);
        if (memcmp(mine, id, ID_BYTES) == 0)
            return &ring->keys[i];
    }
    return NULL;
}

int secret_open(const secret_ring *ring, const void *aad, size_t n_aad, const void *p, size_t n,
                buf *out, err *e) {
    const uint8_t *in = p;
    if (n < ID_BYTES + NONCE_BYTES + TAG_BYTES || n > INT_MAX || n_aad > INT_MAX)
        return err_set(e, ERR_FORMAT, NULL, "%zu bytes are no sealed message", n);
    const secret *s = find_secret(ring, in);
    if (!s)
        return err_set(e, ERR_FORMAT, NULL, "sealed with a secret that is not known here");
    const uint8_t *nonce = in + ID_BYTES, *text = nonce + NONCE_BYTES;
    size_t n_text = n - ID_BYTES - NONCE_BYTES - TAG_BYTES, before = out->len;
    uint8_t tag[TAG_BYTES];
    memcpy(tag, text + n_text, sizeof tag);
    uint8_t *to = buf_extend(out, n_text);
    if (run_gcm(false, s, nonce, aad, n_aad, text, n_text, to, tag))
        return 0;
    secret_wipe(to, n_text); // never hand out what the tag does not vouch for
    buf_cut(out, before);
    return err_set(e, ERR_FORMAT, NULL, "a sealed message was changed, or belongs elsewhere");
}
