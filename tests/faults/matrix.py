"""The fault matrix: each fault at each stage where it can strike, one line a cell.

Stages: A accepted, B held, C queued, D claimed, E first token, F in mid-stream, G finished and unsettled, H settled and
not yet in the ledger. A process reaches its stage by a failpoint (base/failpoint.h): there it dies, or stops until the
fault was dealt. The load goes on all the while; a violation belongs to the cell in which its request began.
"""
import random
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace

import cells as own_clients
import injuries
from injuries import GATEWAY_POINTS, WORKER_POINTS, arm

STOP_SECONDS = 8  # beyond a lease (5 s) and a silence (5 s)
WHOLE = [  # injuries that last, under a load that has requests in every stage: (injury, text, stages, target)
    ("redis-out-of-memory", "Redis out of memory", "A-C", "redis"),
    ("functions-lost", "Redis lost its functions", "B-H", "redis"),
    ("redis-stopped", "Redis stopped for a while", "A-H", "redis"),
    ("commit-without-its-answer", "COMMIT unknown", "G", "gw0"),
    ("gateway-cut-from-redis", "cut gateway - Redis", "A-H", "gw0"),
    ("gateway-stalled-from-redis", "stalled gateway - Redis", "A-H", "gw0"),
    ("worker-cut-from-redis", "cut worker - Redis", "D-F", "w0"),
    ("worker-stalled-from-redis", "stalled worker - Redis", "D-F", "w0"),
    ("gateway-cut-from-postgres", "cut gateway - Postgres", "H", "gw0"),
    ("gateway-killed-before-its-commit", "kill -9 gateway, rows not sent", "H", "gw0"),
    ("gateway-terminated", "SIGTERM gateway under load", "A-H", "gw0"),
    ("worker-terminated", "SIGTERM worker under load", "D-F", "w0"),
    ("gateway-stopped-beyond-the-sweep", "SIGSTOP gateway 24 s, then CONT", "A-H", "gw0"),
    ("gateway-and-worker-killed", "both killed", "A-H", "gw0"),
    ("descriptors-exhausted", "descriptors exhausted", "A-F", "gw0"),
    ("disk-full", "disk full", "A-H", "gw0"),
    ("clock-jumped", "clock of the gateways jumps", "A-H", "gw0"),
    ("clock-of-redis-jumped", "clock of Redis jumps", "A-H", "redis"),
    ("clock-of-postgres-jumped", "clock of Postgres jumps", "A-H", "postgres"),
]
PAUSED = [  # dealt while gw0 stands at a stage: (injury, text, stages)
    ("redis-killed-with-its-log", "kill -9 Redis with AOF", "BCDEFGH"),
    ("redis-killed-and-emptied", "kill -9 Redis without AOF", "BCDEFGH"),
    ("redis-wiped", "Redis wiped", "BCDEFGH"),
    ("redis-failed-over", "Redis failed over, the last moment lost", "BCDEFGH"),
    ("postgres-stopped-hard", "Postgres stopped hard", "AGH"),
]


def killed_at(point):
    return lambda site, name, r: arm(site, name, point, "kill")


def stopped_at(point):
    def deal(site, name, r):
        reached = arm(site, name, point, "stop")
        time.sleep(STOP_SECONDS if reached else 0)
        site.by_name[name].send(signal.SIGCONT)
        return reached
    return deal


def while_standing_at(point, injury):
    """The injury strikes while the gateway stands at the point."""
    def deal(site, name, r):
        reached = arm(site, name, point, "stop")
        try:
            injury.deal(site, injury.target, r)
        finally:
            site.by_name[name].send(signal.SIGCONT)
        return reached
    return deal


def dealt(injury):
    def deal(site, name, r):
        injury.deal(site, name, r)
        return True
    return deal


def refuses_an_evicting_redis(site, name, r):
    """A gateway and a worker that start while Redis evicts end with an error that says so."""
    site.redis_call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        for role in ("gateway", "worker"):
            config = site.path("gw1.ini" if role == "gateway" else "w1.ini")
            command = [site.binary, role, "--config", config, "--set", f"general.data_dir={site.path('spare')}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            if done.returncode == 0 or "noeviction" not in done.stderr:
                raise AssertionError(f"the {role} does not refuse an evicting Redis: {done.stderr[-300:]}")
    finally:
        site.redis_call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    return True


def make_cells(site):
    """(fault, stage, injury, target, deal)."""
    known = injuries.ALL
    cells = [("kill -9 gateway", s, known["gateway-killed"], "gw0", killed_at(p)) for s, p in GATEWAY_POINTS.items()]
    cells += [("kill -9 worker", s, known["worker-killed"], "w0", killed_at(p)) for s, p in WORKER_POINTS.items()]
    cells += [("SIGSTOP worker, then CONT", s, known["worker-stopped"], "w0", stopped_at(WORKER_POINTS[s]))
              for s in ("D", "D3", "E", "F", "F2")]
    cells += [("SIGSTOP gateway, then CONT", s, known["gateway-stopped"], "gw0", stopped_at(GATEWAY_POINTS[s]))
              for s in ("A", "C", "E", "F", "G", "H")]
    for name, text, stages in PAUSED:
        injury = replace(known[name], loses_gateway=True)
        cells += [(text, s, injury, "gw0", while_standing_at(GATEWAY_POINTS[s], injury)) for s in stages]
    for name, text, stage, target in WHOLE:
        if name in site.impossible():
            continue
        cells.append((text, stage, known[name], target, dealt(known[name])))
    policy = injuries.Injury("evicting-redis", "redis", None, loses_redis=False)
    cells.append(("evicting Redis is refused at start", "-", policy, "redis", refuses_an_evicting_redis))
    return cells + own_clients.make_cells()


def matrix_run(run):
    from faults import report, say
    o, site, found = run.o, run.site, ["not checked"]
    say(f"fault matrix, seed {o.seed}")
    try:
        site.kinds += own_clients.make_kinds()
        run.start()
        cells, results = make_cells(site), []
        if o.only:
            cells = [c for c in cells if re.search(o.only, f"{c[0]} {c[1]}")]
        for text, stage, injury, target, deal in cells:
            time.sleep(0.5)
            troubles = len(run.troubles)
            begin = time.time()
            reached = run.deal(injury, target, random.Random(f"{o.seed} {text} {stage}"), deal)
            trouble = run.troubles[troubles:]
            results.append((text, stage, begin, time.time(), reached, trouble))
            say(f"dealt  {text:42} {stage:4} {time.time() - begin:5.1f} s{'' if reached else '  stage not reached'}")
        run.quiesce()
        history, rows, accepted, found = run.check()
        verdicts = Counter()
        for text, stage, begin, end, reached, trouble in results:
            n = sum(begin <= x["began"] < end + 2 for x in history)
            broken = sorted({v.rule for v in found if begin <= v.at < end + 2})
            verdict = "failed" if broken or trouble else "passed" if reached else "skipped"
            verdicts[verdict] += 1
            why = " ".join(broken + trouble) or ("" if reached else "the stage was not reached")
            say(f"cell   {text:42} {stage:4} {n:6} requests  {verdict}{': ' if why else ''}{why}")
        broken_rules = report(history, rows, accepted, found, run.skipped)
        verdicts["failed"] = verdicts["failed"] or broken_rules  # what no cell accounts for
        say(", ".join(f"{verdicts[v]} {v}" for v in ("passed", "failed", "skipped")))
        return verdicts["failed"]
    finally:
        run.close(bool(found) or o.keep)

