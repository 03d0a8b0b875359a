"""fairness.py [SECONDS]: a tenant with 10,000 requests in the queue, and one that asks once a second, at the same worker.

Real processes (two gateways, one worker with the small real model), real clients over TLS. Says how long the second tenant
waited until the worker's first pass with its request, in passes and in ms, beside the time of a pass. A developer's tool: it
asserts nothing.
"""
import re
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))
from fleet import MODEL, running  # noqa: E402  (the path is set above)
from flood import Flood, make_visitor, visit, waiting  # noqa: E402
from installation import MODEL_FILE, wait_for  # noqa: E402

FLOOD = 10_000
SLOTS = 16
OPTIONS = {"gateway.queue_per_tenant": 2 * FLOOD, "gateway.request_ms": 3_600_000, "worker.slots": SLOTS, "worker.threads": 2,
           "worker.kv_bytes": "512MiB", f"model {MODEL}.path": MODEL_FILE}
FLOODED = {"max_tokens": 128, "ignore_eos": True, "messages": [{"role": "user", "content": "Tell me a long story. " * 20}]}
VISIT = {"max_tokens": 8, "ignore_eos": True, "messages": [{"role": "user", "content": "Hi"}]}  # less than half of the service


def steps(fleet):
    """(passes, their seconds) of the worker so far"""
    text = urllib.request.urlopen(f"http://127.0.0.1:{fleet.ops_port('w0')}/metrics", timeout=10).read().decode()
    return [float(re.search(rf"^tiergate_worker_step_seconds_{what} (\S+)", text, re.M)[1]) for what in ("count", "sum")]


def ask_each_second(fleet, key, seconds):
    """What `why` says of each visit; they do not wait for each other."""
    rows, threads = [], []
    for _ in range(seconds):
        threads.append(threading.Thread(target=lambda: rows.append(visit(fleet, key, VISIT))))
        threads[-1].start()
        time.sleep(1)
    for t in threads:
        t.join()
    return rows


def tell(what, values):
    values = sorted(values)
    at = [values[min(len(values) - 1, len(values) * p // 100)] for p in (50, 99)]
    print(f"{what}: p50 {at[0]:g}, p99 {at[1]:g}, most {values[-1]:g}", flush=True)


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with running(gateways=2, workers=1, options=OPTIONS) as fleet:
        key = make_visitor(fleet, "visitor")
        flood = Flood(fleet.gateway_ports(), fleet.make_key("flood"), FLOODED)
        try:
            flood.start(FLOOD)
            print(f"{waiting(fleet)} requests of one tenant wait; the other asks {seconds} times, once a second")
            before = steps(fleet)
            rows = ask_each_second(fleet, key, seconds)
            n, spent = (after - was for was, after in zip(before, steps(fleet)))
            print(f"{waiting(fleet)} wait still; {n:.0f} passes of {spent / n * 1000:.1f} ms on average")
        finally:
            flood.stop()
            wait_for(lambda: waiting(fleet) == 0, 120, "the flood does not leave")
    tell("wait in passes that ended meanwhile", [row["queue_steps"] for row in rows])
    tell("wait in ms", [row["queue_ms"] for row in rows])
    tell("wait over the time of a pass", [round(row["queue_ms"] / (spent / n * 1000), 2) for row in rows])


main()
