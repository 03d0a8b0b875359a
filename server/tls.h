// OpenSSL contexts of the front end: TLS 1.2 and up, ALPN http/1.1, small memory per connection.
#ifndef SERVER_TLS_H
#define SERVER_TLS_H
#include <openssl/ssl.h>
#include "base/err.h"

// Reads certificate chain and key. ERR_FORMAT names the file and OpenSSL's reason.
int tls_context_new(const char *cert_path, const char *key_path, SSL_CTX **out, err *e);
// OpenSSL's oldest queued reason on this thread, then clears the queue. Text is static.
const char *tls_reason(void);

#endif
