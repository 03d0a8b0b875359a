// A private CA and a server certificate for installations that bring none.
#ifndef SERVER_TLS_CERT_H
#define SERVER_TLS_CERT_H
#include <stdbool.h>
#include "base/err.h"

#define TLS_CERT_PATH 512

typedef struct tls_cert_paths {
    char ca[TLS_CERT_PATH];   // for clients
    char cert[TLS_CERT_PATH]; // server certificate, then the CA's
    char key[TLS_CERT_PATH];
} tls_cert_paths;

// Makes what is missing in dir (ca.pem, ca.key, server.pem, server.key; EC P-256; keys with mode
// 0600). names: DNS names and addresses, comma-separated; the first is the common name. The server
// certificate (825 days) is made anew when names changed, when it ends within 30 days, or when it
// is not the CA's; the CA (10 years) only when absent. *renewed (may be NULL): a new one was
// written. ERR_INVALID: a name is malformed; ERR_FORMAT: ca.pem and ca.key do not belong together.
int tls_cert_ensure(const char *dir, const char *names, tls_cert_paths *out, bool *renewed, err *e);

#endif
