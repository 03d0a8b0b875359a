"""The clients: threads that send requests over TLS and write down what each of them saw, one line of JSON a request.

Usage: load.py PLAN HISTORY [RATE]   PLAN is the JSON that faults.py writes. Runs until its stdin ends; then every client
finishes its request. It knows nothing of the product but its API: what it counts are the characters that reached it
(one a token, see model.py).

A line: n gateway key kind stream n_choices max_tokens cancel_at idle_since (of a connection that is used again) began
first ended id status end code texts finish usage; idem, again (how the first try of the same Idempotency-Key ended) and
replayed; session (None: it names none). `end` is one of
  done         a complete body, or a stream that ended in [DONE]
  refused      a status that is not 200, with an error body
  error_event  a stream that ended in an error event
  dropped      the connection ended before any of these
  cancelled    the client went away, as it meant to
  unsent       there was no connection to send it on
  hung         nothing for HUNG_SECONDS
  malformed    anything the API does not allow: data after the end, two ends, no JSON, ...
"""
import json
import random
import socket
import ssl
import struct
import sys
import threading
import time

HUNG_SECONDS = 45
ABSENT = 0  # max_tokens not said


class Ended(Exception):
    """The connection ended; `clean` tells an orderly end from a broken one."""


class Malformed(Exception):
    pass


class Connection:
    """HTTP/1.1 over TLS, kept alive; reads from one buffer."""

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def __init__(self, port, options=()):
        """options: of the socket, from before it connects."""
        plain = socket.socket()
        for option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *options):
            plain.setsockopt(*option)
        plain.settimeout(10)
        try:
            plain.connect(("127.0.0.1", port))
            self.socket = self.context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.socket.settimeout(HUNG_SECONDS)
        self.buffer = b""
        self.used_at = time.time()

    def more(self):
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise
        except OSError as e:
            raise Ended(str(e)) from None
        if not data:
            raise Ended("end of file")
        self.buffer += data

    def line(self):
        while (at := self.buffer.find(b"\r\n")) < 0:
            self.more()
        line, self.buffer = self.buffer[:at], self.buffer[at + 2:]
        return line

    def take(self, n):
        while len(self.buffer) < n:
            self.more()
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def head(self):
        """Status and fields in lower case."""
        words = self.line().split(b" ")
        if not words[0].startswith(b"HTTP/1.1"):
            raise Malformed("no status line")
        fields = {}
        while line := self.line():
            name, _, value = line.partition(b":")
            fields[name.strip().lower().decode()] = value.strip().decode()
        return int(words[1]), fields

    def chunks(self):
        """The pieces of a chunked body as they come."""
        while n := int(self.line(), 16):
            yield self.take(n)
            if self.take(2) != b"\r\n":
                raise Malformed("chunk without its end")
        if self.line():
            raise Malformed("trailer")

    def body(self, fields):
        if fields.get("transfer-encoding") == "chunked":
            return b"".join(self.chunks())
        return self.take(int(fields.get("content-length", 0)))

    def reset(self):
        """Goes away with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        try:
            self.socket.close()
        except OSError:
            pass


class Client(threading.Thread):
    def __init__(self, plan, index, out, stopping, pace):
        super().__init__(daemon=True)
        self.plan, self.out, self.stopping, self.pace = plan, out, stopping, pace
        self.random = random.Random(f"{plan['seed']}/{index}")
        self.open = {}
        self.refused_at = [0.0] * len(plan["ports"])  # of each gateway: when there was no connection to be had
        self.index, self.n = index, 0

    def run(self):
        while not self.stopping.is_set():
            self.pace()
            self.once()

    # ---- one request

    def choose(self):
        r, p = self.random, self.plan
        kind = r.randrange(len(p["kinds"]))
        stream = r.random() < p["streamed"]
        return {
            "n": f"{self.index}.{self.n}", "gateway": self.choose_gateway(), "key": r.randrange(len(p["keys"])),
            "kind": kind, "stream": stream, "n_choices": p["kinds"][kind].get("n", 1),
            "max_tokens": ABSENT if r.random() < 0.05 else r.choice(p["max_tokens"]),
            "cancel_at": r.choice([0, 1, 2, 5, 9]) if stream and r.random() < p["cancelled"] else None,
            "idem": f"{p['seed']}/{self.index}.{self.n}" if not stream and r.random() < p["idempotent"] else None,
            "session": r.choice("ab") if p["kinds"][kind].get("headers") and r.random() < p["in_session"] else None,
        }

    def choose_gateway(self):
        """Any, but rather not one that was away a moment ago."""
        ports = range(len(self.plan["ports"]))
        return self.random.choice([g for g in ports if time.monotonic() - self.refused_at[g] > 0.5] or ports)

    def once(self):
        self.n += 1
        x = self.choose()
        self.try_out(x)
        if x["idem"] and x["end"] in ("done", "dropped"):  # as a client that did not hear the answer
            again = {k: x[k] for k in ("key", "kind", "stream", "n_choices", "max_tokens", "cancel_at", "idem")}
            again.update(n=x["n"] + "+", gateway=self.choose_gateway(), again=x["end"])
            self.try_out(again)

    def try_out(self, x):
        x.update(began=time.time(), first=None, id=None, status=None, code=None, texts=[""] * x["n_choices"],
                 finish=[None] * x["n_choices"], usage=None)
        connection = None
        try:
            connection = self.connect(x["gateway"])
            x["idle_since"] = connection.used_at
            x["end"] = self.ask(connection, x)
        except TimeoutError:
            x["end"] = "hung" if connection else "unsent"
        except (Ended, OSError) as e:
            x["end"], x["why"] = ("dropped" if connection else "unsent"), str(e)
        except (Malformed, ValueError, KeyError, IndexError, TypeError) as e:
            x["end"], x["why"] = "malformed", f"{type(e).__name__}: {e}"
        x["ended"] = time.time()
        if connection:
            connection.used_at = x["ended"]
        self.out(x)
        if x["end"] == "unsent":
            self.refused_at[x["gateway"]] = time.monotonic()
        if x["end"] not in ("done", "refused") and connection:
            connection.close()
            self.open.pop(x["gateway"], None)
        if x["end"] in ("unsent", "dropped", "refused"):
            time.sleep(self.random.uniform(0.02, 0.15))

    def connect(self, gateway):
        if gateway not in self.open or self.random.random() < 0.02:
            old = self.open.pop(gateway, None)
            if old:
                old.close()
            self.open[gateway] = Connection(self.plan["ports"][gateway])
        return self.open[gateway]

    def send(self, connection, x):
        kind = self.plan["kinds"][x["kind"]]
        body = dict(kind["body"])
        if x["max_tokens"] != ABSENT:
            body["max_tokens"] = x["max_tokens"]
        if x["stream"]:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        data = json.dumps(body).encode()
        head = (f"POST {kind['path']} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                f"{self.plan['keys'][x['key']]}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
                + "".join(f"{name}: {value}\r\n" for name, value in kind.get("headers", {}).items())
                + (f"x-tiergate-deadline-ms: {x['deadline_ms']}\r\n" if "deadline_ms" in x else "")
                + (f"Idempotency-Key: {x['idem']}\r\n" if x["idem"] else "")
                + (f"x-tiergate-session: {x['session']}\r\n" if x.get("session") else "") + "\r\n")
        try:
            connection.socket.sendall(head.encode() + data)
        except OSError as e:
            raise Ended(str(e)) from None

    def ask(self, connection, x):
        self.send(connection, x)
        if x["cancel_at"] == 0:
            time.sleep(self.random.choice([0, 0.002, 0.02]))
            connection.reset()
            return "cancelled"
        x["status"], fields = connection.head()
        x["id"] = fields.get("x-request-id")
        x["replayed"] = fields.get("x-tiergate-idempotent-replay") == "1"
        if x["status"] != 200:
            x["retry"] = fields.get("x-should-retry")
            x["code"] = json.loads(connection.body(fields))["error"]["code"]
            return "refused"
        if fields.get("content-type", "").startswith("text/event-stream"):
            return self.read_stream(connection, x)
        answer = json.loads(connection.body(fields))
        self.take_body(x, answer)
        return "done"

    def take_body(self, x, answer):
        x["first"] = time.time()
        if len(answer["choices"]) != x["n_choices"]:
            raise Malformed("number of choices")
        for c in answer["choices"]:
            x["texts"][c["index"]] = c["text"] if "text" in c else c["message"]["content"] or ""
            x["finish"][c["index"]] = c["finish_reason"]
        x["usage"] = answer["usage"]["completion_tokens"]

    def read_stream(self, connection, x):
        pending, end = b"", None
        for chunk in connection.chunks():
            x["first"] = x["first"] or time.time()
            pending += chunk
            *events, pending = pending.split(b"\n\n")
            for event in events:
                if event.startswith(b":"):
                    continue
                if end:
                    raise Malformed("an event after the end")
                end = self.take_event(x, event)
            if x["cancel_at"] and not end and len(x["texts"][0]) >= x["cancel_at"]:
                connection.reset() if self.random.random() < 0.5 else connection.close()
                return "cancelled"
        if not end or pending:
            raise Malformed("the body ended, the stream did not")
        return end

    def take_event(self, x, event):
        if not event.startswith(b"data: "):
            raise Malformed("no data")
        if event == b"data: [DONE]":
            if None in x["finish"]:
                raise Malformed("[DONE] without a finish_reason")
            return "done"
        data = json.loads(event[6:])
        if "error" in data:
            x["code"] = data["error"]["code"]
            return "error_event"
        for c in data["choices"]:
            text = c.get("text") if "text" in c else c["delta"].get("content")
            if x["finish"][c["index"]] and text:
                raise Malformed("text after finish_reason")
            x["texts"][c["index"]] += text or ""
            x["finish"][c["index"]] = c["finish_reason"] or x["finish"][c["index"]]
        if data.get("usage"):
            x["usage"] = data["usage"]["completion_tokens"]
        return None


def pacer(rate):
    """At most `rate` requests a second, all clients together; 0: no limit."""
    lock, due = threading.Lock(), [time.monotonic()]

    def pace():
        if not rate:
            return
        with lock:
            due[0] = max(due[0] + 1 / rate, time.monotonic() - 0.5)
            wait = due[0] - time.monotonic()
        if wait > 0:
            time.sleep(wait)
    return pace


def main():
    plan = json.load(open(sys.argv[1]))
    stopping, lock = threading.Event(), threading.Lock()
    with open(sys.argv[2], "w", buffering=1 << 16) as history:
        def out(x):
            line = json.dumps(x) + "\n"
            with lock:
                history.write(line)
        pace = pacer(plan["rate"])
        clients = [Client(plan, f"{plan['process']}.{i}", out, stopping, pace) for i in range(plan["clients"])]
        for c in clients:
            c.start()
        sys.stdin.read()
        stopping.set()
        for c in clients:
            c.join(HUNG_SECONDS + 30)
        if any(c.is_alive() for c in clients):
            sys.exit("a client does not come back")


if __name__ == "__main__":
    main()
