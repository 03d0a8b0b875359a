"""Streams whose clients vanish side by side, and what became of each: tokens the worker made after the disconnect, time
until its place was free, the hold, the row. `make vanish` runs it with 1,000 clients, 100 at a time, and prints the
figures; test_vanish.py asserts them with fewer.

The worker's log (level debug) says of each run when the last two steps that made a token of it began, and when it was
dropped; the gateway's says when it closed the request. Both, and ours, are CLOCK_MONOTONIC of this machine.
"""
import json
import os
import selectors
import socket
import ssl
import struct
import sys
import tempfile
import time
from pathlib import Path

from installation import Installation, wait_for, whole_lines

HOW = ("FIN", "RST", "close_notify", "RST")  # half of them by RST
TOKENS = 1500  # of an answer: none ends by itself meanwhile


def vanish_by_fin(sock):
    sock.shutdown(socket.SHUT_RDWR)


def vanish_by_close_notify(sock):
    sock.setblocking(False)
    try:
        sock.unwrap()  # sends close_notify; the answer to it is not awaited
    except (ssl.SSLError, OSError):
        pass
    os.close(sock.detach())  # whoever else holds the object


def vanish_by_rst(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(sock.detach())


VANISH = {"FIN": vanish_by_fin, "RST": vanish_by_rst, "close_notify": vanish_by_close_notify}


class Client:
    """One streamed chat on a socket of its own."""

    def __init__(self, gateway, how, **more):
        self.how, self.bytes, self.left_us = how, b"", 0
        plain = socket.create_connection((gateway.host, gateway.port), 60)
        self.sock = gateway.tls.wrap_socket(plain, server_hostname=gateway.host)
        body = json.dumps(gateway.chat(stream=True, ignore_eos=True, max_tokens=TOKENS) | more).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: tiergate\r\nAuthorization: Bearer {gateway.key}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        self.sock.sendall(head + body)
        self.sock.setblocking(False)

    def take(self):
        try:
            while data := self.sock.recv(65536):
                self.bytes += data
        except (ssl.SSLWantReadError, BlockingIOError):
            pass

    def tokens(self):
        return self.bytes.count(b"\ndata: {") - 1  # the first event is of the role

    def id(self):
        head = self.bytes.partition(b"\r\n\r\n")[0].lower()
        return head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()

    def vanish(self):
        self.left_us = time.monotonic_ns() // 1000
        VANISH[self.how](self.sock)


def read_until(clients, n):
    """Every client has n tokens."""
    waiting = selectors.DefaultSelector()
    for c in clients:
        waiting.register(c.sock, selectors.EVENT_READ, c)
    left = {id(c) for c in clients}
    while left:
        events = waiting.select(60)
        assert events, f"{len(left)} of {len(clients)} streams stand still"
        for key, _ in events:
            key.data.take()
            if key.data.tokens() >= n:
                left.discard(id(key.data))
    waiting.close()


def log_lines(path, event):
    """id -> the last line with this event."""
    found = {}
    for line in whole_lines(path):
        if f'"{event}"' in line:
            line = json.loads(line)
            found[line.get("id") or line.get("request") or line.get("request_id")] = line
    return found


def sequences(gateway, home):
    """Places taken in the engine."""
    return int(home.metric("worker", "tiergate_worker_sequences"))


def run(home, n, first=0):
    """n clients stream side by side and vanish. Per client: how, tokens received, made, made by steps begun after the
    disconnect (as the gateway saw it, as the client did), microseconds to the free place, its row."""
    gateway = home.gateway()
    gateway.command("quota", "set", "--tenant", "local", "--tokens-per-day", "1000000000")
    clients = [Client(gateway, HOW[i % len(HOW)]) for i in range(first, first + n)]
    read_until(clients, 3)
    for c in clients:
        c.vanish()
    wait_for(lambda: sequences(gateway, home) == 0, 60, home.said)
    wait_for(lambda: gateway.redis("SCARD", f"tg:{{{gateway.tenant()}}}:open") == b"0", 60, home.said)
    rows = wait_for(lambda: (r := {r["request_id"]: r for r in gateway.rows()}) and all(c.id() in r for c in clients) and r, 60)
    runs = log_lines(home.worker_log, "run.end")
    closings = log_lines(home.gateway_log, "request.closing")
    return [told(c, rows[c.id()], runs[c.id()], closings[c.id()]) for c in clients]


def told(client, row, run_end, closing):
    steps = [run_end["step_us"], run_end["step_before_us"]]
    return {"how": client.how, "received": client.tokens(), "made": run_end["made"], "row": row,
            "after_seen": sum(us > closing["us"] for us in steps), "after_left": sum(us > client.left_us for us in steps),
            "seen_us": closing["us"] - client.left_us, "free_us": run_end["us"] - client.left_us}


def is_free(held):
    return held == {"t": (0, 0, 0)}


def at(values, part):
    values = sorted(values)
    return values[int(part * len(values))] if values else 0


def main(n, at_once):
    with tempfile.TemporaryDirectory(prefix="tiergate-vanish-", ignore_cleanup_errors=True) as directory:
        home = Installation(directory, *options(at_once)).start()
        try:
            found = []
            while len(found) < n:
                found += run(home, min(at_once, n - len(found)), len(found))
            held = home.gateway().held()
        finally:
            home.kill()
    for how in VANISH:
        some = [x for x in found if x["how"] == how]
        ms = lambda name, part: at([x[name] / 1000 for x in some], part)
        print(f"{how:12} {len(some):5} clients: tokens of steps begun after the disconnect "
              f"{[sum(x['after_seen'] == k for x in some) for k in range(3)]} (0, 1, more); seen after p50 {ms('seen_us', .5):.1f} "
              f"p99 {ms('seen_us', .99):.1f} ms; place free after p50 {ms('free_us', .5):.1f} p99 {ms('free_us', .99):.1f} ms")
    print(f"made but not handed: {[sum(x['made'] - x['row']['completion_tokens'] == k for x in found) for k in range(5)]} (0..4 tokens)")
    print(f"held afterwards: {held}")
    bad = [x for x in found if x["after_seen"] > 1 or not x["received"] <= x["row"]["completion_tokens"] <= x["made"]]
    print(f"{n} vanished, {len(bad)} made more than one step or paid something else, held {'nothing' if is_free(held) else held}")
    return bool(bad) or not is_free(held)


def options(n):
    """For `tiergate up`: n streams side by side, and logs that tell when."""
    return ("--set", f"worker.slots={n}", "--set", f"worker.kv_bytes={max(1024, 3 * n)}MiB", "--set",
            f"worker.step_tokens={max(512, 2 * n)}", "--set", "general.log_level=debug")


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
