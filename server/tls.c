// OpenSSL server contexts. A context is immutable once made and may be shared by all reactors; a
// reload makes a new one. Does not touch connections.
#include "server/tls.h"
#include <openssl/err.h>
#include <string.h>

const char *tls_reason(void) {
    unsigned long code = ERR_get_error();
    const char *text = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
                       : code                 ? ERR_reason_error_string(code)
                                              : NULL;
    ERR_clear_error();
    return text ? text : "unknown reason";
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n_out,
                           const unsigned char *in, unsigned n_in, void *ctx) {
    (void)ssl;
    (void)ctx;
    static const unsigned char ours[] = "\x08http/1.1";
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, n_out, ours, sizeof ours - 1, in, n_in) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static void set_policy(SSL_CTX *ctx) {
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20");
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    // Sessions resume by ticket; the server keeps none.
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 1);
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
}

int tls_context_new(const char *cert_path, const char *key_path, SSL_CTX **out, err *e) {
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return err_set(e, ERR_INTERNAL, NULL, "no TLS context: %s", tls_reason());
    set_policy(ctx);
    const char *broken = NULL;
    if (SSL_CTX_use_certificate_chain_file(ctx, cert_path) != 1)
        broken = cert_path;
    else if (SSL_CTX_use_PrivateKey_file(ctx, key_path, SSL_FILETYPE_PEM) != 1 ||
             SSL_CTX_check_private_key(ctx) != 1)
        broken = key_path;
    if (broken) {
        SSL_CTX_free(ctx);
        return err_set(e, ERR_FORMAT, NULL, "%s cannot be used for TLS: %s", broken, tls_reason());
    }
    *out = ctx;
    return 0;
}
