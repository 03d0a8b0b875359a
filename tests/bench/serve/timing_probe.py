"""Does the time to the first token tell a tenant what another tenant has asked? It must not; within a tenant it does.

A victim asks half of N prompts of one length. Then a probing tenant asks all of them in random order, each once, and the AUC of
its times, asked-before against never-asked, is told: 0.5 is blind, 1.0 is certain. The same is done with the victim's own key
as the probing one: that AUC must be near 1, or the probe could see nothing at all.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serve_bench import connect, start_tiergate

WORDS = "queue lease fence hold journal ledger tenant worker gateway prefix page chunk token step lane claim".split()


def prompt(number, words):
    source = random.Random(number)
    return f"{number:06d} " + " ".join(source.choice(WORDS) for _ in range(words))


def first_token_seconds(server, connection, text):
    body = {"model": server.model, "stream": True, "temperature": 0, "max_tokens": 1,
            "messages": [{"role": "user", "content": text}]}
    begun = time.perf_counter()
    connection.request("POST", server.path + "/chat/completions", json.dumps(body),
                       {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read(300)}")
    took = None
    while line := answer.readline():
        if took is None and line.startswith(b"data: {"):
            took = time.perf_counter() - begun
    return took


def auc(smaller, larger):
    """The share of pairs in which the first list's value is the smaller one."""
    both = sorted([(v, 0) for v in smaller] + [(v, 1) for v in larger])
    rank = sum(i + 1 for i, (_, kind) in enumerate(both) if kind == 1)
    return (rank - len(larger) * (len(larger) + 1) / 2) / (len(smaller) * len(larger))


def probe(server, asked, fresh, words):
    order = [(n, True) for n in asked] + [(n, False) for n in fresh]
    random.Random(1).shuffle(order)
    connection, times = connect(server), {True: [], False: []}
    for number, was_asked in order:
        times[was_asked].append(first_token_seconds(server, connection, prompt(number, words)))
    return auc(times[True], times[False])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiergate", default="build/tiergate")
    parser.add_argument("--probes", type=int, default=500)
    parser.add_argument("--words", type=int, default=120)
    args = parser.parse_args()
    half = args.probes // 2
    kv_mib = 2048 + 12 * args.probes  # nothing is evicted: what nobody holds any more no time can tell
    args.threads, args.context, args.kv_bytes, args.set = 2, 1024, f"{kv_mib}MiB", []
    with tempfile.TemporaryDirectory(prefix="tiergate-probe-") as directory:
        server = start_tiergate(args, Path(directory))
        try:
            made = subprocess.run([args.tiergate, "key", "create", "--config", f"{directory}/data/run.ini", "--tenant", "local",
                                   "--user", "probe", "--create-missing"], capture_output=True, text=True, check=True)
            victim = made.stdout.strip()
            other = stranger_key(args, directory)
            connection, server.key = connect(server), victim
            for number in range(args.probes):  # the victim's half, twice over: one for each probing key
                first_token_seconds(server, connection, prompt(number, args.words))
            server.key = other
            blind = probe(server, range(half), range(10000, 10000 + half), args.words)
            server.key = victim
            sighted = probe(server, range(half, 2 * half), range(20000, 20000 + half), args.words)
        finally:
            server.stop()
    print(f"{2 * half} probes each: another tenant's AUC {blind:.3f} (0.45 to 0.55 is blind), the tenant's own {sighted:.3f}")
    sys.exit(not (0.45 <= blind <= 0.55 and sighted > 0.9))


def stranger_key(args, directory):
    """A key of another tenant that may call the same model."""
    options = ["--config", f"{directory}/data/run.ini"]
    made = subprocess.run([args.tiergate, "key", "create", *options, "--tenant", "stranger", "--user", "probe", "--create-missing"],
                          capture_output=True, text=True, check=True)
    url = next(line.split("=", 1)[1].strip() for line in Path(f"{directory}/data/run.ini").read_text().splitlines()
               if line.startswith("url"))
    subprocess.run(["psql", url, "-qc", "INSERT INTO assignments (tenant_id, name, model) SELECT id, 'bench', 'bench' FROM tenants "
                                        "WHERE name = 'stranger'"], check=True)
    time.sleep(1)  # gateways hear of it
    return made.stdout.strip()


if __name__ == "__main__":
    main()
