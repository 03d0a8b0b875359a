// Bytes to and from one client, over TLS or plain. Owns nothing; the conn's reactor thread. Does
// not buffer: what the socket does not take stays with the caller.
#include "server/http_internal.h"
#include <errno.h>
#include <openssl/err.h>
#include <sys/socket.h>

static io_result from_errno(void) {
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? IO_AGAIN : IO_BROKEN;
}

static io_result from_tls(conn *c, int rc) {
    int why = SSL_get_error(c->ssl, rc);
    ERR_clear_error();
    switch (why) {
    case SSL_ERROR_WANT_READ:
        return IO_AGAIN;
    case SSL_ERROR_WANT_WRITE:
        c->wants_write = true;
        return IO_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return IO_END;
    default:
        return IO_BROKEN;
    }
}

io_result io_handshake(conn *c) {
    if (!c->ssl)
        return IO_OK;
    ERR_clear_error();
    c->wants_write = false;
    int rc = SSL_accept(c->ssl);
    return rc == 1 ? IO_OK : from_tls(c, rc);
}

io_result io_read(conn *c, char *p, size_t n, size_t *got) {
    *got = 0;
    if (c->ssl) {
        ERR_clear_error();
        int rc = SSL_read_ex(c->ssl, p, n, got);
        return rc == 1 ? IO_OK : from_tls(c, rc);
    }
    ssize_t r = recv(c->fd, p, n, 0);
    if (r < 0)
        return from_errno();
    *got = (size_t)r;
    return r > 0 ? IO_OK : IO_END;
}

bool io_has_more(const conn *c) { return c->ssl && SSL_has_pending(c->ssl); }

io_result io_write(conn *c, const char *p, size_t n, size_t *took) {
    *took = 0;
    if (c->ssl) {
        ERR_clear_error();
        int rc = SSL_write_ex(c->ssl, p, n, took);
        return rc == 1 ? IO_OK : from_tls(c, rc);
    }
    ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL);
    if (w < 0) {
        io_result r = from_errno();
        c->wants_write = c->wants_write || r == IO_AGAIN;
        return r;
    }
    *took = (size_t)w;
    return IO_OK;
}

void io_end_writing(conn *c) {
    if (c->ssl) {
        ERR_clear_error();
        SSL_shutdown(c->ssl); // best effort: the FIN says the rest
        ERR_clear_error();
    }
    shutdown(c->fd, SHUT_WR);
}
