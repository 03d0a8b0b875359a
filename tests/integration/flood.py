"""A tenant that floods a tier: thousands of requests over TLS, each on a connection of its own, whose answers nobody reads."""
import json
import socket
import threading

from fleet import CHAT, MODEL, TLS
from installation import wait_for

THREADS = 8


class Flood:
    def __init__(self, ports, key, body):
        self.ports, self.sockets = ports, []
        text = json.dumps({"model": MODEL, "stream": True} | body)
        self.request = (f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
                        f"Content-Length: {len(text)}\r\n\r\n{text}").encode()

    def connect(self, port, session=None):
        plain = socket.create_connection(("127.0.0.1", port), 60)
        return TLS.wrap_socket(plain, session=session)

    def ticket(self, port):
        """To resume with: a handshake that is resumed costs a third."""
        with self.connect(port) as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            tls.recv(100)
            return tls.session

    def pour(self, sessions, n):
        for i in range(n):
            at = i % len(self.ports)
            tls = self.connect(self.ports[at], sessions[at])
            tls.sendall(self.request)
            self.sockets.append(tls)

    def start(self, n):
        sessions = [self.ticket(port) for port in self.ports]
        threads = [threading.Thread(target=self.pour, args=(sessions, n // THREADS)) for _ in range(THREADS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(self.sockets) == n // THREADS * THREADS
        return self

    def stop(self):
        for tls in self.sockets:
            tls.close()
        self.sockets = []


def waiting(site):
    """Requests that wait in the tier, by the queue itself."""
    return sum(n for _, n in site.redis_call("FCALL", "tq2_look", "1", "tg:{7b}:", "0"))


def make_visitor(fleet, tenant):
    """The key of a tenant that is made for it."""
    key = fleet.make_key("visitor", tenant)
    fleet.sql(f"INSERT INTO assignments (tenant_id, name, model) SELECT id, '{MODEL}', '{MODEL}' FROM tenants WHERE name = '{tenant}'")
    return key


def visit(fleet, key, body):
    """What `why` says of one request that was answered."""
    client = fleet.client(0, key)
    status, headers, _ = client.ask(body)
    client.close()
    assert status == 200

    def find():
        found = json.loads(fleet.command("why", headers["x-request-id"], *fleet.command_config, "--json"))
        return found if found["state"] == "recorded" else None
    return wait_for(find, 20, f"no row of {headers['x-request-id']}")
