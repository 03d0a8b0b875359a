"""Tiergate beside llama-cpp-python's server: the same GGUF file, two threads each, both over TLS, in turns.

Each round drives one server at a time with N clients in a closed loop: a shared system message, a question of its own, a
streamed answer of a fixed number of tokens. Then eight streams run while a long prompt arrives. Medians over the rounds;
figures are this machine's, ratios travel further. No thresholds fail the run: it ends with `below target: N`.
"""
import argparse
import http.client
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

START_SECONDS = 120
TOKENS = 64  # of an answer
SYSTEM = "You are the assistant of a code editor. Answer with code first, then one sentence. " + \
    "Prefer the standard library, name things by what they are, handle errors where they happen. " * 8
QUESTION = "Question {n}: explain what this function does and where it fails.\n" + \
    "def merge_{n}(left, right):\n    out = []\n    while left and right:\n" \
    "        out.append(left.pop(0) if left[0] < right[0] else right.pop(0))\n    return out\n" * 4
LONG = "int field_{n}(const struct record *r) {{ return r->values[{n}] * {n}; }}\n"


class Server:
    """What a client needs to know, and the process to end."""

    def __init__(self, name, url, ca, key, model, process, **more):
        parts = urlsplit(url)
        self.name, self.host, self.port, self.path = name, parts.hostname, parts.port, parts.path
        self.tls = ssl.create_default_context(cafile=ca)
        self.tls.check_hostname = False
        self.key, self.model, self.process, self.more = key, model, process, more  # more: of a request's body

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def wait_until(ready, process, log):
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"a server does not start:\n{Path(log).read_text()[-2000:]}")
        time.sleep(0.1)


def start_tiergate(args, directory):
    ready_file, log = directory / "ready.json", directory / "up.log"
    settings = {"worker.threads": args.threads, "worker.slots": 32, "worker.max_context": args.context,
                "worker.kv_bytes": args.kv_bytes} | dict(word.split("=", 1) for word in args.set)
    line = [args.tiergate, "up", "--data", directory / "data", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
            "--ready-file", ready_file, "--model", f"bench={args.model}"]
    for key, value in settings.items():
        line += ["--set", f"{key}={value}"]
    process = subprocess.Popen(line, stdout=open(log, "wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    wait_until(ready_file.exists, process, log)
    ready = json.loads(ready_file.read_text())
    return Server("tiergate", ready["base_url"], ready["ca_file"], ready["api_key"], "bench", process, ignore_eos=True)


def start_llama(args, directory):
    key, cert, log, port = directory / "key.pem", directory / "cert.pem", directory / "llama.log", free_port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=localhost"], check=True, capture_output=True)
    line = [sys.executable, "-m", "llama_cpp.server", "--model", args.model, "--model_alias", "bench", "--host", "127.0.0.1",
            "--port", str(port), "--n_threads", str(args.threads), "--n_threads_batch", str(args.threads),
            "--n_ctx", str(args.context), "--chat_format", "chatml", "--interrupt_requests", "False", "--verbose", "False",
            "--ssl_keyfile", key, "--ssl_certfile", cert]
    process = subprocess.Popen(line, stdout=open(log, "wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    server = Server("llama.cpp", f"https://127.0.0.1:{port}/v1", cert, "-", "bench", process)
    wait_until(lambda: answers(server), process, log)
    return server


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(server):
    try:
        connection = http.client.HTTPSConnection(server.host, server.port, context=server.tls, timeout=5)
        connection.request("GET", server.path + "/models", headers={"Authorization": f"Bearer {server.key}"})
        return connection.getresponse().status == 200
    except OSError:
        return False


# ---- one request

class Times:
    """When a streamed answer's texts came."""

    def __init__(self, begun, at, n_tokens):
        self.ttft = at[0] - begun
        self.gaps = [b - a for a, b in zip(at, at[1:])]
        self.ended, self.n_tokens = at[-1], n_tokens


def ask(server, connection, text, tokens, started=None):
    """Streams one answer of `tokens` tokens; llama.cpp's may end earlier, since a logit_bias against that would slow it down."""
    body = {"model": server.model, "stream": True, "temperature": 0, "max_tokens": tokens,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]} | server.more
    begun, at, finish = time.monotonic(), [], None
    connection.request("POST", server.path + "/chat/completions", json.dumps(body),
                       {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{server.name}: {answer.status} {answer.read(500)}")
    while line := answer.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(f"{server.name}: {event}")
        for choice in event.get("choices", []):
            if choice.get("delta", {}).get("content"):
                at.append(time.monotonic())
                if started and len(at) == 1:
                    started()
            finish = choice.get("finish_reason") or finish
    if finish not in ("length", "stop") or not at:
        raise RuntimeError(f"{server.name}: ended by {finish} after {len(at)} of {tokens} tokens")
    return Times(begun, at, tokens if finish == "length" else len(at))


def connect(server):
    return http.client.HTTPSConnection(server.host, server.port, context=server.tls, timeout=600)


# ---- the measurements

def closed_loop(server, n_clients, n_each, first):
    """(tokens a second, TTFTs, gaps) of n_clients that ask n_each questions one after another."""
    results, failures = [], []

    def client(i):
        try:
            connection = connect(server)
            for k in range(n_each):
                results.append(ask(server, connection, QUESTION.format(n=first + i * n_each + k), TOKENS))
            connection.close()
        except Exception as e:  # told by the main thread
            failures.append(e)

    begun = time.monotonic()
    run_all([threading.Thread(target=client, args=(i,)) for i in range(n_clients)])
    if failures:
        raise failures[0]
    seconds = max(r.ended for r in results) - begun
    return sum(r.n_tokens for r in results) / seconds, [r.ttft for r in results], [g for r in results for g in r.gaps]


def run_all(threads):
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def streams_beside_a_prompt(server, n_streams, prompt_tokens, first):
    """Gaps of n_streams streams without and with a long prompt that arrives among them, and that prompt's TTFT."""
    def streams(n_tokens, during):
        results, ready = [], threading.Barrier(n_streams + 1)
        late = []

        def one(i):
            results.append(ask(server, connect(server), QUESTION.format(n=first + i), n_tokens, ready.wait))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(n_streams)]
        for t in threads:
            t.start()
        ready.wait()
        since = time.monotonic()
        if during:
            late.append(during())
        until = time.monotonic()
        for t in threads:
            t.join()
        gaps = []
        for r in results:
            at = r.ended - sum(r.gaps)
            for g in r.gaps:
                at += g
                if at > since and (not during or at - g < until):
                    gaps.append(g)
        return gaps, late[0].ttft if late else None

    lines = prompt_tokens // 28
    text = "".join(LONG.format(n=first + i) for i in range(lines)) + "Which field is the largest?"
    alone, _ = streams(TOKENS * 8, None)  # as deep as those beside it: a step costs more behind more tokens
    beside, ttft = streams(TOKENS * 8, lambda: ask(server, connect(server), text, 4))
    return alone, beside, ttft


# ---- the table

def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))]


def ms(seconds):
    return f"{seconds * 1000:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiergate", default="build/tiergate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--kv-bytes", default="3GiB")
    parser.add_argument("--clients", default="1,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2, help="of each client in a round")
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the long prompt; 0: leave that part out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of Tiergate")
    parser.add_argument("--alone", action="store_true", help="Tiergate only")
    args = parser.parse_args()
    counts = [int(word) for word in args.clients.split(",")]
    with tempfile.TemporaryDirectory(prefix="tiergate-serve-") as directory:
        servers = [start_tiergate(args, Path(directory))]
        if not args.alone:
            servers.append(start_llama(args, Path(directory)))
        try:
            below = measure(servers, counts, args)
        finally:
            for server in servers:
                server.stop()
    print(f"below target: {below}")


def measure(servers, counts, args):
    print(f"model {Path(args.model).name}, {args.threads} threads, answers of {TOKENS} tokens, {args.rounds} rounds, "
          f"load at start {os.getloadavg()[0]:.1f}", flush=True)
    for server in servers:  # warm, and the shared system message known where there is a cache
        closed_loop(server, 1, 1, 900000)
    found, first, below = {}, 0, 0
    for _ in range(args.rounds):
        for n in counts:
            for server in servers:
                found.setdefault((n, server.name), []).append(closed_loop(server, n, args.requests, first))
                first += n * args.requests
    print(f"{'clients':>7} {'server':<10} {'tok/s':>8} {'TTFT p50':>9} {'p99':>9} {'ITL p50':>8} {'p99':>8}  ms")
    for n in counts:
        rates, waits = [], []
        for server in servers:
            rounds = found[n, server.name]
            rate = statistics.median(r[0] for r in rounds)
            ttft, gaps = [t for r in rounds for t in r[1]], [g for r in rounds for g in r[2]]
            print(f"{n:>7} {server.name:<10} {rate:>8.1f} {ms(percentile(ttft, 50)):>9} {ms(percentile(ttft, 99)):>9} "
                  f"{ms(percentile(gaps, 50)):>8} {ms(percentile(gaps, 99)):>8}", flush=True)
            rates.append(rate)
            waits.append(percentile(ttft, 50))
        if len(servers) == 2:
            faster, sooner = rates[0] / rates[1], waits[0] / waits[1]
            is_aimed = n in (8, 16)
            below += is_aimed and (faster < 2.5) + (sooner > 1 / 3)
            print(f"{'':>7} {'ratio':<10} {faster:>8.2f} {sooner:>9.2f}" + ("   target 2.50, 0.33" if is_aimed else ""))
    if args.prompt:
        below += measure_long(servers[0], args, first)
    return below


def measure_long(server, args, first):
    ratios, waits = [], []
    for _ in range(args.rounds):
        alone, beside, ttft = streams_beside_a_prompt(server, 8, args.prompt, first)
        first += args.prompt
        ratios.append(percentile(beside, 99) / percentile(alone, 99))
        waits.append(ttft)
        print(f"8 streams, ITL p50/p99: {ms(percentile(alone, 50))}/{ms(percentile(alone, 99))} ms; with a prompt of "
              f"{args.prompt}: {ms(percentile(beside, 50))}/{ms(percentile(beside, 99))} ms; its TTFT {ttft:.2f} s", flush=True)
    ratio = statistics.median(ratios)
    print(f"ITL p99 with the prompt / without: {ratio:.2f}   target 2.00")
    return ratio > 2


if __name__ == "__main__":
    main()
