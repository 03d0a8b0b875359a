// Makes the private CA and the server certificate (X.509 v3, RFC 5280) with OpenSSL 3. Owns the
// four files of one directory, written atomically. Start-up and reload, one thread. Does not check
// that clients trust the CA, and never touches certificates an administrator configured.
#include "server/tls_cert.h"
#include "server/tls.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/id.h"
#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define CA_DAYS 3650
#define SERVER_DAYS 825
#define RENEW_DAYS 30
#define DAY_SECONDS 86400
#define BACKDATE_SECONDS 3600 // clients' clocks may be behind

static int fail(err *e, const char *what) {
    return err_set(e, ERR_INTERNAL, NULL, "cannot make %s: %s", what, tls_reason());
}

// ---- names

static bool is_dns_name(const char *name) {
    size_t n = strlen(name);
    if (n == 0 || n > 253 || name[0] == '.' || name[0] == '-')
        return false;
    const char *rest = strncmp(name, "*.", 2) == 0 ? name + 2 : name;
    for (const char *p = rest; *p; p++) {
        bool is_alnum =
            (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9');
        if (!is_alnum && *p != '-' && *p != '.' && *p != '_')
            return false;
        if (*p == '.' && p[1] == '.')
            return false;
    }
    return *rest != '\0';
}

static bool is_address(const char *name) {
    unsigned char bytes[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

static char *trim(char *s) {
    s += strspn(s, " \t");
    size_t n = strlen(s);
    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t'))
        s[--n] = '\0';
    return s;
}

// names -> "DNS:a,IP:1.2.3.4" and the first name.
static int write_san(const char *names, buf *san, char common[65], err *e) {
    char copy[1024], *state = NULL;
    common[0] = '\0';
    if ((size_t)snprintf(copy, sizeof copy, "%s", names) >= sizeof copy)
        return err_set(e, ERR_INVALID, "gateway.tls_names", "tls_names is longer than 1023 bytes");
    for (char *part = strtok_r(copy, ",", &state); part; part = strtok_r(NULL, ",", &state)) {
        char *name = trim(part);
        bool is_ip = is_address(name);
        if (!is_ip && !is_dns_name(name))
            return err_set(e, ERR_INVALID, "gateway.tls_names",
                           "\"%.80s\" is neither a DNS name nor an address", name);
        if (!common[0])
            snprintf(common, 65, "%.64s", name);
        buf_printf(san, "%s%s:%s", san->len ? "," : "", is_ip ? "IP" : "DNS", name);
    }
    if (!common[0])
        return err_set(e, ERR_INVALID, "gateway.tls_names", "tls_names is empty");
    return 0;
}

// ---- files

static X509 *read_cert(const char *path) {
    buf text = {0};
    X509 *cert = NULL;
    if (file_exists(path) && file_read(path, 1 << 20, &text, NULL) == 0) {
        BIO *in = BIO_new_mem_buf(text.data, (int)text.len);
        cert = in ? PEM_read_bio_X509(in, NULL, NULL, NULL) : NULL;
        BIO_free(in);
    }
    buf_release(&text);
    return cert;
}

static EVP_PKEY *read_key(const char *path) {
    buf text = {0};
    EVP_PKEY *key = NULL;
    if (file_exists(path) && file_read(path, 1 << 20, &text, NULL) == 0) {
        BIO *in = BIO_new_mem_buf(text.data, (int)text.len);
        key = in ? PEM_read_bio_PrivateKey(in, NULL, NULL, NULL) : NULL;
        BIO_free(in);
        OPENSSL_cleanse(text.data, text.len);
    }
    buf_release(&text);
    return key;
}

static int write_bio(const char *path, mode_t mode, BIO *out, err *e) {
    char *p = NULL;
    long n = BIO_get_mem_data(out, &p);
    if (n <= 0)
        return fail(e, path);
    return file_write_atomic(path, mode, p, (size_t)n, e);
}

static int write_key(const char *path, EVP_PKEY *key, err *e) {
    BIO *out = BIO_new(BIO_s_secmem());
    int rc = -1;
    if (out && PEM_write_bio_PKCS8PrivateKey(out, key, NULL, NULL, 0, NULL, NULL) == 1)
        rc = write_bio(path, 0600, out, e);
    else
        fail(e, path);
    BIO_free(out);
    return rc;
}

// cert, then issuer when it is not NULL.
static int write_certs(const char *path, X509 *cert, X509 *issuer, err *e) {
    BIO *out = BIO_new(BIO_s_mem());
    int rc = -1;
    if (out && PEM_write_bio_X509(out, cert) == 1 &&
        (!issuer || PEM_write_bio_X509(out, issuer) == 1))
        rc = write_bio(path, 0644, out, e);
    else
        fail(e, path);
    BIO_free(out);
    return rc;
}

// ---- certificates

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value) {
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    int ok = x && X509_add_ext(cert, x, -1) == 1;
    X509_EXTENSION_free(x);
    return ok ? 0 : -1;
}

static int set_serial(X509 *cert) {
    unsigned char bytes[16];
    id_random(bytes, sizeof bytes);
    bytes[0] &= 0x7f; // positive (RFC 5280 section 4.1.2.2)
    bytes[0] |= 0x40; // and never zero
    BIGNUM *n = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool ok = n && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert));
    BN_free(n);
    return ok ? 0 : -1;
}

static X509 *new_cert(EVP_PKEY *key, X509 *issuer, const char *common, int days) {
    X509 *cert = X509_new();
    X509_NAME *name = cert ? X509_get_subject_name(cert) : NULL;
    if (!name || X509_set_version(cert, X509_VERSION_3) != 1 || set_serial(cert) ||
        !X509_gmtime_adj(X509_getm_notBefore(cert), -BACKDATE_SECONDS) ||
        !X509_time_adj_ex(X509_getm_notAfter(cert), days, 0, NULL) ||
        X509_set_pubkey(cert, key) != 1 ||
        X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, (const unsigned char *)"Tiergate", -1,
                                   -1, 0) != 1 ||
        X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)common, -1, -1,
                                   0) != 1 ||
        X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : name) != 1) {
        X509_free(cert);
        return NULL;
    }
    return cert;
}

static X509 *make_ca(EVP_PKEY *key) {
    char common[64], tag[9];
    unsigned char bytes[4];
    id_random(bytes, sizeof bytes);
    id_hex(bytes, sizeof bytes, tag);
    snprintf(common, sizeof common, "Tiergate private CA %s", tag); // tells installations apart
    X509 *ca = new_cert(key, NULL, common, CA_DAYS);
    if (ca && (add_extension(ca, ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
               add_extension(ca, ca, NID_key_usage, "critical,keyCertSign,cRLSign") ||
               add_extension(ca, ca, NID_subject_key_identifier, "hash") ||
               X509_sign(ca, key, EVP_sha256()) <= 0)) {
        X509_free(ca);
        ca = NULL;
    }
    return ca;
}

static X509 *make_server(EVP_PKEY *key, X509 *ca, EVP_PKEY *ca_key, const char *common,
                         const char *san) {
    X509 *cert = new_cert(key, ca, common, SERVER_DAYS);
    if (cert && (add_extension(cert, ca, NID_basic_constraints, "critical,CA:FALSE") ||
                 add_extension(cert, ca, NID_key_usage, "critical,digitalSignature") ||
                 add_extension(cert, ca, NID_ext_key_usage, "serverAuth") ||
                 add_extension(cert, ca, NID_subject_key_identifier, "hash") ||
                 add_extension(cert, ca, NID_authority_key_identifier, "keyid:always") ||
                 add_extension(cert, ca, NID_subject_alt_name, san) ||
                 X509_sign(cert, ca_key, EVP_sha256()) <= 0)) {
        X509_free(cert);
        cert = NULL;
    }
    return cert;
}

// ---- is the present one good?

// Compares the extension's bytes with those that san would give.
static bool has_names(X509 *cert, const char *san) {
    X509 *wanted = X509_new();
    bool same = false;
    if (wanted && add_extension(wanted, wanted, NID_subject_alt_name, san) == 0) {
        int at = X509_get_ext_by_NID(cert, NID_subject_alt_name, -1);
        if (at >= 0) {
            ASN1_OCTET_STRING *have = X509_EXTENSION_get_data(X509_get_ext(cert, at));
            ASN1_OCTET_STRING *want = X509_EXTENSION_get_data(X509_get_ext(wanted, 0));
            same = ASN1_OCTET_STRING_cmp(have, want) == 0;
        }
    }
    X509_free(wanted);
    return same;
}

static bool is_good(const tls_cert_paths *p, X509 *ca, const char *san) {
    X509 *cert = read_cert(p->cert);
    EVP_PKEY *key = read_key(p->key);
    time_t soon = time(NULL) + (time_t)RENEW_DAYS * DAY_SECONDS;
    bool good = cert && key && X509_check_private_key(cert, key) == 1 &&
                X509_verify(cert, X509_get0_pubkey(ca)) == 1 &&
                X509_cmp_time(X509_get0_notAfter(cert), &soon) > 0 && has_names(cert, san);
    X509_free(cert);
    EVP_PKEY_free(key);
    return good;
}

// ---- the whole

static int ensure_ca(const tls_cert_paths *p, const char *key_path, X509 **ca, EVP_PKEY **key,
                     err *e) {
    bool has_cert = file_exists(p->ca), has_key = file_exists(key_path);
    if (has_cert || has_key) {
        *ca = read_cert(p->ca);
        *key = read_key(key_path);
        if (!*ca || !*key || X509_check_private_key(*ca, *key) != 1)
            return err_set(e, ERR_FORMAT, NULL,
                           "%s and %s are not a CA and its key; remove both to make new ones",
                           p->ca, key_path);
        return 0;
    }
    *key = EVP_EC_gen("P-256");
    *ca = *key ? make_ca(*key) : NULL;
    if (!*ca)
        return fail(e, "a private CA");
    if (write_key(key_path, *key, e))
        return -1;
    return write_certs(p->ca, *ca, NULL, e);
}

static int renew(const tls_cert_paths *p, X509 *ca, EVP_PKEY *ca_key, const char *common,
                 const char *san, err *e) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = key ? make_server(key, ca, ca_key, common, san) : NULL;
    int rc = cert ? 0 : fail(e, "a server certificate");
    if (rc == 0)
        rc = write_key(p->key, key, e);
    if (rc == 0)
        rc = write_certs(p->cert, cert, ca, e);
    X509_free(cert);
    EVP_PKEY_free(key);
    return rc;
}

static int set_paths(const char *dir, tls_cert_paths *out, char *ca_key, err *e) {
    const struct {
        char *to;
        const char *name;
    } files[] = {{out->ca, "ca.pem"},
                 {out->cert, "server.pem"},
                 {out->key, "server.key"},
                 {ca_key, "ca.key"}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int n = snprintf(files[i].to, TLS_CERT_PATH, "%s/%s", dir, files[i].name);
        if (n >= TLS_CERT_PATH)
            return err_set(e, ERR_INVALID, NULL, "the path %s is too long", dir);
    }
    return 0;
}

int tls_cert_ensure(const char *dir, const char *names, tls_cert_paths *out, bool *renewed,
                    err *e) {
    char ca_key_path[TLS_CERT_PATH], common[65];
    buf san = {0};
    X509 *ca = NULL;
    EVP_PKEY *ca_key = NULL;
    bool is_new = false;
    int rc = -1;
    if (set_paths(dir, out, ca_key_path, e) || write_san(names, &san, common, e) ||
        file_mkdirs(dir, 0755, e) || ensure_ca(out, ca_key_path, &ca, &ca_key, e))
        goto done;
    if (!is_good(out, ca, san.data)) {
        if (renew(out, ca, ca_key, common, san.data, e))
            goto done;
        is_new = true;
    }
    rc = 0;
done:
    if (renewed)
        *renewed = is_new;
    X509_free(ca);
    EVP_PKEY_free(ca_key);
    buf_release(&san);
    return rc;
}
