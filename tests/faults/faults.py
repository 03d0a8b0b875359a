"""Real processes, real servers, random faults, and a checker: is P1 to P6 of the protocol true in the product?

    faults.py --seed N [--seconds 60] [--only NAME,...]   a random schedule, repeatable by its seed
    faults.py --seeds "1 2 3"                             one after another: a line for each, and the sums
    faults.py --matrix                                    each fault at each stage, one line a cell
    faults.py --list

Prints the seed first, one line a fault, every violation with the request it is about, and at the end
"N passed, N failed, N skipped": one for each property. The directory with all logs stays when something failed.
"""
import argparse
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPSConnection
from pathlib import Path

import checker
import injuries
from servers import MODEL, ROOT, Site, missing_programs

PROPERTIES = {
    "P1": "every accepted request has one outcome and one row",
    "P2": "no id has two rows, quota_used is the sum of the rows",
    "P3": "no row exceeds what was handed, and is exact where it must be",
    "P4": "no limit is overspent, Redis and the ledger agree",
    "P6": "positions are continuous, at most 3 attempts",
    "VERIFY": "`tiergate usage verify` finds no difference",
    "REST": "everything ends: no record, entry or hold is left, no process crashed",
}

IN_FLIGHT_TOKENS = 600  # of one request, at most: two choices and their prompt


def say(text):
    print(text, flush=True)


# ---- what is asked

def make_kinds(r):
    words = ["def", "return", "tier", "gate", "x = 1", "for i", "import", "queue", "hold", "settle", "(", "):", "# row"]
    kinds = []
    for i in range(40):
        prompt = " ".join(r.choice(words) for _ in range(r.randrange(2, 12)))
        body = {"model": MODEL, "seed": r.randrange(1, 1 << 30)}
        if r.random() < 0.3:
            body = {"model": MODEL, "temperature": 0}
        kind = {"path": "/v1/completions", "body": body | {"prompt": prompt}, "n": 1}
        if i % 4 == 1:
            kind["path"] = "/v1/chat/completions"
            kind["body"] = body | {"messages": [{"role": "user", "content": prompt}]}
        if i % 4 == 2:
            kind["headers"] = {"x-tiergate-task": "completion"}
        if i % 8 == 3 and "seed" in body:
            kind["n"] = kind["body"]["n"] = 2
        kinds.append(kind)
    return kinds


def learn_references(site, kinds):
    """The whole undisturbed text of each kind, and its prompt's tokens."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection("127.0.0.1", site.gateway_ports()[0], context=context, timeout=60)
    for kind in kinds:
        connection.request("POST", kind["path"], json.dumps(kind["body"]), {
            "Authorization": f"Bearer {site.keys[0]['key']}", "Content-Type": "application/json"} | kind.get("headers", {}))
        answer = connection.getresponse()
        data = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"no reference: {data}")
        choices = sorted(data["choices"], key=lambda c: c["index"])
        kind["references"] = [(c["text"] if "text" in c else c["message"]["content"], c["finish_reason"]) for c in choices]
        kind["prompt_tokens"] = data["usage"]["prompt_tokens"]
        kind["tokens"] = data["usage"]["completion_tokens"]
        kind["reference_id"] = answer.getheader("x-request-id")
    connection.close()


# ---- the clients

class Load:
    def __init__(self, site, kinds, o):
        self.histories, self.children = [], []
        for process in range(o.processes):
            plan = {"seed": o.seed, "process": process, "clients": o.clients // o.processes,
                    "rate": o.rate / o.processes, "ports": site.gateway_ports(), "keys": [k["key"] for k in site.keys],
                    "kinds": [{k: v for k, v in kind.items() if k in ("path", "body", "n", "headers")} for kind in kinds],
                    "streamed": 0.7, "cancelled": 0.1, "idempotent": 0.2, "in_session": 0.5,
                    "max_tokens": [1, 2, 4, 4, 8, 8, 8, 16, 16, 48]}
            path, history = site.path(f"plan{process}.json"), site.path(f"history{process}.jsonl")
            Path(path).write_text(json.dumps(plan))
            self.histories.append(history)
            self.children.append(subprocess.Popen([sys.executable, Path(__file__).with_name("load.py"), path, history],
                                                  stdin=subprocess.PIPE))

    def stop(self):
        for c in self.children:
            c.stdin.close()
        return [f"a client process ended with {c.returncode}" for c in self.children if c.wait(120)]


# ---- the faults

class Run:
    """One site, its load and the faults dealt so far."""

    def __init__(self, o):
        self.o, self.faults, self.lock = o, [], threading.Lock()
        self.dir = tempfile.mkdtemp(prefix="tiergate-faults-")
        self.site = Site(self.dir, o.binary, small_disks=o.disk)
        self.site.kinds = make_kinds(random.Random(f"kinds {o.seed}"))
        self.site.n_load_kinds = len(self.site.kinds)
        self.load, self.troubles = None, []

    def start(self):
        o, site = self.o, self.site
        site.start(str(ROOT / "build" / "tests" / "chaos_proxy"), budget=2000 + int(o.seconds * 600))
        learn_references(site, site.kinds)
        enforced = bool(checker.read_scopes(site))  # they were asked under limits
        self.skipped = {} if enforced else {"P4": "this build applies no limits"}
        self.load = Load(site, site.kinds[:site.n_load_kinds], o)

    def deal(self, injury, target, r, deal=None):
        """Deals one injury and notes from when to when its effects may be seen. None: there may be none."""
        if not injury:
            return self.hurt("a cell", target, deal, r)
        fault = {"name": injury.name, "target": target, "begin": time.time() - 0.05, "end": float("inf"),
                 "gateways": {int(target[-1])} if injury.loses_gateway else set(), "redis": injury.loses_redis,
                 "kills_worker": "worker" in injury.name, "drains": injury.name.endswith("-terminated")}
        with self.lock:
            self.faults.append(fault)
        result = self.hurt(injury.name, target, deal or injury.deal, r)
        fault["end"] = time.time() + 2
        return result

    def hurt(self, name, target, deal, r):
        try:
            result = deal(self.site, target, r)
            self.site.wait_ready(90)
            return result
        except Exception as e:  # the site did not come back: that is a finding
            self.troubles.append(f"after {name} of {target}: {type(e).__name__}: {e}")

    def random_faults(self):
        o = self.o
        r = random.Random(o.seed)
        names = o.only.split(",") if o.only else list(injuries.ALL)
        known = [injuries.ALL[n] for n in names if n not in self.site.impossible()]
        begun, threads = time.monotonic(), []
        while (left := o.seconds - (time.monotonic() - begun)) > 0:
            time.sleep(min(left, r.uniform(0.3, 2.5)))
            threads = [t for t in threads if t.is_alive()]
            if len(threads) >= 2:
                continue
            injury = r.choices(known, [k.weight for k in known])[0]
            target = injury.target
            if target == "gw":
                target += str(r.randrange(self.site.n_gateways))
            elif target == "w":
                target += str(r.randrange(self.site.n_workers))
            if not o.quiet:
                say(f"{time.monotonic() - begun:6.1f} s  {injury.name} {target}")
            threads.append(threading.Thread(target=self.deal, args=(injury, target, random.Random(r.random()))))
            threads[-1].start()
            if r.random() < 0.6:
                threads[-1].join(30)
        for t in threads:
            t.join()

    # ---- the end

    def quiesce(self):
        """Everything heals; then whatever must end has ended within the time of R4 and R5."""
        try:
            injuries.heal(self.site)
        except Exception as e:
            self.troubles.append(f"the site does not heal: {e}")
        self.troubles += self.load.stop()
        until, left = time.monotonic() + self.o.rest, ["?"]
        while left and time.monotonic() < until:
            time.sleep(0.5)
            rows = {r.id for r in checker.read_rows(self.site)}
            left = checker.left_in_redis(self.site) + [f"no row of {i}" for i in checker.read_journals(self.site) - rows]
        if left:
            self.troubles.append(f"{len(left)} things are left, {self.o.rest} s after the end: {left[:6]}")

    def check(self):
        site = self.site
        history = checker.read_history(self.load.histories) + site.told
        accepted = checker.read_journals(site)
        rows = checker.read_rows(site)
        history += [reference_line(k, i) for i, k in enumerate(site.kinds)]
        c = checker.Checker(history, rows, accepted, checker.read_worker_logs(site), site.kinds, self.faults)
        for x in history:
            x.update({k: site.keys[x["key"]][k] for k in ("tenant_id", "user_id")})
        found = c.run(checker.read_quota_used(site), site.limits, site.limited, self.o.clients * IN_FLIGHT_TOKENS,
                      checker.day_counters(site))
        done = subprocess.run([site.binary, "usage", "verify", "--config", site.path("w0.ini"), "--json"], capture_output=True, text=True)
        if not done.stdout:
            found.append(checker.Violation("VERIFY", 0, done.stderr[-600:].replace("\n", "; ")))
        else:
            found += [checker.Violation("VERIFY", 0, f"{d['check']}: {d['what']}") for d in json.loads(done.stdout)["differences"]
                      if d["check"] != "used" or not any(f["redis"] for f in self.faults)]
        found = [v for v in found if v.rule not in self.skipped]
        found += [checker.Violation("REST", 0, t) for t in self.troubles + site.crashes()]
        return history, rows, accepted, found

    def close(self, keep):
        for child in self.load.children if self.load else []:
            child.kill()
        self.site.stop()
        if keep:
            say(f"logs, history and configuration: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)


def reference_line(kind, index):
    """The history of the request that a reference came from."""
    texts, finish = [list(t) for t in zip(*kind["references"])]
    return {"n": f"reference {index}", "gateway": 0, "key": 0, "kind": index, "stream": False, "n_choices": kind["n"],
            "max_tokens": 0, "began": 0, "ended": 0, "id": kind["reference_id"], "status": 200, "code": None,
            "end": "done", "texts": texts, "finish": finish, "usage": kind["tokens"]}


def put_tally(tally):
    return ", ".join(f"{n} {what}" for what, n in tally.items())


def report(history, rows, accepted, found, skipped):
    ends = Counter(x["end"] for x in history)
    outcomes = Counter(r.outcome for r in rows)
    attempts = Counter(r.attempts for r in rows)
    refused = Counter(x["code"] for x in history if x["end"] == "refused")
    rules = Counter(v.rule for v in found)
    tally = {"requests": len(history), "accepted": len(accepted), "rows": len(rows),
             "without an outcome": sum(x["end"] in ("hung", "malformed") for x in history),
             "without a row": len(accepted - {r.id for r in rows}), "counted twice": rules["P2"], "overspent": rules["P4"]}
    say(f"{put_tally(tally)}; {sum(len(t) for x in history for t in x['texts'])} tokens")
    say("clients:  " + ", ".join(f"{n} {e}" for e, n in ends.most_common()))
    say(f"replayed: {sum(bool(x.get('replayed')) for x in history)} of {sum('again' in x for x in history)} repeats")
    say("refused:  " + ", ".join(f"{n} {c}" for c, n in refused.most_common()))
    say("rows:     " + ", ".join(f"{n} {o}" for o, n in outcomes.most_common()))
    say("attempts: " + ", ".join(f"{n} of {a}" for a, n in sorted(attempts.items())))
    for rule, n in rules.items():
        for v in [v for v in found if v.rule == rule][:8]:
            say(f"VIOLATION {v}")
        if n > 8:
            say(f"VIOLATION {rule}: and {n - 8} more")
    for rule, text in PROPERTIES.items():
        verdict = "skipped" if rule in skipped else "FAILED" if rules[rule] else "passed"
        say(f"{rule:6} {verdict:8} {text}{': ' + skipped[rule] if rule in skipped else ''}")
    failed = sum(rule in rules for rule in PROPERTIES)
    say(f"{len(PROPERTIES) - failed - len(skipped)} passed, {failed} failed, {len(skipped)} skipped")
    return failed


def random_run(o):
    begun = time.monotonic()
    run, found = Run(o), ["not checked"]
    say(f"seed {o.seed}, {o.seconds} s, {o.clients} clients, at most {o.rate} requests/s" if o.rate else
        f"seed {o.seed}, {o.seconds} s, {o.clients} clients")
    try:
        run.start()
        if o.within:  # on a machine that is slow to start, fewer faults
            o.seconds = min(o.seconds, o.within - o.rest - 30 - (time.monotonic() - begun))
        run.random_faults()
        run.quiesce()
        history, rows, accepted, found = run.check()
        faults = Counter(f["name"] for f in run.faults)
        say(f"{len(run.faults)} faults: " + ", ".join(f"{n} {f}" for f, n in faults.most_common()))
        return report(history, rows, accepted, found, run.skipped)
    finally:
        run.close(bool(found) or o.keep)
        if found:
            say(f"the same faults again: make faults SEED={o.seed} FAULTS_SECONDS={o.seconds:.0f} (their moments are the machine's)")


def series(o):
    """A process for each seed, its output in build/faults."""
    total, worst, logs = Counter(), 0, ROOT / "build" / "faults"
    logs.mkdir(parents=True, exist_ok=True)
    for seed in o.seeds.split():
        log = logs / f"seed{seed}.log"
        options = [w for w in sys.argv[1:] if w not in ("--seeds", o.seeds)]
        with open(log, "w") as out:
            done = subprocess.run([sys.executable, __file__, *options, "--seed", seed], stdout=out, stderr=out)
        text = log.read_text()
        tally = re.search(r"^(\d+ requests, .*); \d+ tokens$", text, re.MULTILINE)
        numbers = {what: int(n) for n, what in (part.split(" ", 1) for part in tally[1].split(", "))} if tally else {}
        total.update(numbers)
        worst = worst or done.returncode
        say(f"seed {seed}: {put_tally(numbers)}; {text.splitlines()[-1] if not done.returncode else f'FAILED, see {log}'}")
    say(f"together: {put_tally(total)}")
    return worst


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--clients", type=int, default=48)
    p.add_argument("--processes", type=int, default=1)
    p.add_argument("--rate", type=float, default=0, help="requests a second at most; 0: as fast as they go")
    p.add_argument("--rest", type=float, default=60, help="seconds for everything to end after the last fault")
    p.add_argument("--within", type=float, default=0, help="seconds for all of it: a slow machine gets fewer faults; 0: no limit")
    p.add_argument("--seeds", default="", help="several seeds, one after another")
    p.add_argument("--only", default="", help="names of faults, comma-separated")
    p.add_argument("--binary", default="")
    p.add_argument("--matrix", action="store_true", help="each fault at each stage; --only names cells by a part of them")
    p.add_argument("--list", action="store_true")
    p.add_argument("--quiet", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep the directory even when all is well")
    p.add_argument("--disk", action=argparse.BooleanOptionalAction, default=os.geteuid() == 0, help="journals on small disks")
    return p.parse_args()


def main():
    o = parse()
    if o.list:
        print("\n".join(f"{i.name:34} {i.target}" for i in injuries.ALL.values()))
        return 0
    if missing := missing_programs():
        say(f"skip: no {', '.join(missing)}\n0 passed, 0 failed, 1 skipped")
        return 0
    if o.seeds:
        return series(o)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))
    if o.matrix:
        from matrix import matrix_run
        return 1 if matrix_run(Run(o)) else 0
    return 1 if random_run(o) else 0


if __name__ == "__main__":
    sys.exit(main())
