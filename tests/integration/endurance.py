"""`make endurance`: a whole installation under a mixed load of 20 tenants for an hour, and what it is like afterwards.

The load is that of endurance_load.py: clients who ask, read and think, so that the worker is busy and never drowned. Before it
is measured it runs for a while, so that the KV pool, the caches and the pools are as large as they get. Then every process and
server is looked at every ten seconds (endurance_watch.py). It is well when no client saw anything that the API does not
promise, every answer has its row and every row its answer, the same request got the same text all the time, nothing grows
(medians of the last quarter of samples against those of the second one), and after the last answer nothing is left: no hold, no
open record, no position of the KV pool, no key of a request in Redis.
"""
import collections
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from endurance_load import Load
from endurance_watch import Watch, look, metrics, table
from installation import BINARY, Installation, wait_for
from lora_file import write_peft

TENANTS, WITH_ADAPTER = 20, 4
SAMPLE_SECONDS, SAMPLES_LEAST = 10, 40
HOPELESS = 20  # errors after which there is no use in going on
TOLD = 20      # findings that are printed
SETTINGS = {"worker.slots": 12, "worker.kv_bytes": "192MiB", "worker.adapter_bytes": "2MiB", "worker.max_context": 4096,
            "model.small.price_in": 50, "model.small.price_cached": 7, "model.small.price_out": 300}
PLENTY = ("--requests-per-minute", "100000", "--tokens-per-minute", "100000000", "--concurrent-requests", "1000",
          "--tokens-per-day", "1000000000", "--tokens-per-month", "10000000000", "--money-per-month", "100000")
NARROW_PER_MINUTE = 4
# What may stay in Redis when all is quiet; X for ids and hashes: who has tenants and lives, the counters of each scope, the
# newest request of each editor session, the state of the tier and who was served there of late.
KEPT = {"tg:tenants", "tg:g:X", "tg:c:X", "tg:{X}:s:t", "tg:{X}:s:u:X", "tg:{X}:sess:X", "tg:{7b}:m", "tg:{7b}:idle:c",
        "tg:{7b}:idle:i"}


class Place:
    """The installation, its tenants, and the plainest ways to look into its servers."""

    def __init__(self, directory):
        self.directory = Path(directory)
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        self.home = Installation(self.directory / "site", *settings).start()
        self.gateway = self.home.gateway()
        self.config = ["--config", f"{self.gateway.ready['data_dir']}/run.ini"]
        self.url = next(line.split("=", 1)[1].strip() for line in Path(self.config[1]).read_text().splitlines()
                        if line.startswith("url"))

    def command(self, *words):
        done = subprocess.run([BINARY, *map(str, words), *self.config], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise SystemExit(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def sql(self, text):
        return subprocess.run(["psql", self.url, "-qtAc", text], check=True, capture_output=True, text=True).stdout.strip()

    def redis(self, *words):
        return self.gateway.redis(*words).decode()

    def verify(self):
        return subprocess.run([BINARY, "usage", "verify", *self.config], capture_output=True, text=True).stdout

    def tenant(self, number, limits=PLENTY):
        name = f"tenant{number}"
        key = self.command("key", "create", "--tenant", name, "--user", "u", "--create-missing").strip()
        self.command("quota", "set", "--tenant", name, *limits)
        self.command("quota", "set", "--tenant", name, "--user", "u", *PLENTY)
        self.sql(f"INSERT INTO assignments (tenant_id, name, model) SELECT id, 'small', 'small' FROM tenants WHERE name = '{name}'")
        models = ["small"]
        if number < WITH_ADAPTER:
            path = write_peft(self.directory / f"adapter{number}", number)
            self.command("adapter", "import", path, "--tenant", name, "--model", "small", "--name", "own")
            models.append("own")
        return {"key": key, "models": models}

    # ---- when nothing is asked any more

    def open_records(self):
        return sum(int(self.redis("SCARD", f"tg:{{{t}}}:open")) for t in self.redis("SMEMBERS", "tg:tenants").split())

    def is_quiet(self):
        now = look(self)
        return (now["worker sequences"] == now["worker waiting"] == now["connections"] == 0 and self.open_records() == 0
                and self.home.metric("gateway", "tiergate_usage_waiting") == 0)

    def quiet(self):
        """A look at it once it is quiet."""
        wait_for(self.is_quiet, 60, lambda: f"it does not come to rest: {look(self)}\n{self.home.tails()}")
        return look(self)


def main(seconds, seed):
    with tempfile.TemporaryDirectory(prefix="tiergate-endurance-", ignore_cleanup_errors=True) as directory:
        place = Place(directory)
        try:
            tenants = [place.tenant(i) for i in range(TENANTS)]
            narrow = place.tenant(TENANTS, ("--requests-per-minute", NARROW_PER_MINUTE))
            wait_for(lambda: place.gateway.request("GET", "/v1/models/own", key=tenants[WITH_ADAPTER - 1]["key"])[0] == 200)
            load = Load(place.gateway, tenants, narrow, seed)
            free = place.quiet()["worker kv_free_tokens"]
            warm(place, load, max(20, min(120, seconds / 10)))
            before = place.quiet()
            watch = Watch(place, min(SAMPLE_SECONDS, seconds / SAMPLES_LEAST))
            watch.start()
            run(place, load, seconds, watch)
            after = place.quiet()
            lines, growing = table(watch.samples)
            wrong = load.errors + [f"grows: {name}" for name in growing] + left(place, before, after, free) + ledger(place, load)
            if watch.failed:
                wrong.append(f"the watch ended: {watch.failed!r}")
            tell(place, load, lines, wrong)
        finally:
            place.home.kill()
    return bool(wrong)


def warm(place, load, seconds):
    """Until everything is as large as it gets: the KV pool has been full once too."""
    run(place, load, seconds)
    while not place.home.metric("worker", "tiergate_worker_prefix_evicted_pages_total") and goes_on(place, load):
        run(place, load, 10)


def goes_on(place, load):
    return place.home.up.poll() is None and len(load.errors) < HOPELESS


def run(place, load, seconds, watch=None):
    load.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and goes_on(place, load):
        time.sleep(0.2)
    if watch:
        watch.stop()
    load.stop()


# ---- what must be so afterwards

def left(place, before, after, free):
    """What is there that should not be; `before` and `after` are looks at it when it was quiet, before and after the load."""
    wrong = []
    if not after["worker kv_free_tokens"] == before["worker kv_free_tokens"] == free:
        wrong.append(f"of {free} positions of the KV pool {after['worker kv_free_tokens']} came back")
    for kind in ("gateway", "worker", "up"):
        for name, most in (("threads", 0), ("fds", 4)):
            was, now = before[f"{kind} {name}"], after[f"{kind} {name}"]
            if now > was + most:
                wrong.append(f"{kind}: {now} {name}, {was} before the load")
    for key in place.redis("KEYS", "tg:*").split():
        if kind_of(key) not in KEPT:
            wrong.append(f"left in Redis: {key}")
        elif ":s:" in key and any(held := struct.unpack("<11d", place.gateway.redis("GET", key))[8:]):
            wrong.append(f"held in {key}: {held}")
    gateway = metrics(place.home.ready()["ops_url"])
    for name in ("redeliveries", "leases_lost", "swept", "swept_holds", "usage_repeats"):
        if n := gateway[f"tiergate_{name}_total"]:
            wrong.append(f"tiergate_{name}_total is {n:.0f}")
    return wrong


def kind_of(key):
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,}", "X", key)


def ledger(place, load):
    """Answers without a row of theirs, rows without an answer, and what `usage verify` finds."""
    wrong, rows = [], {r["request_id"]: r for r in place.gateway.rows()}
    for x in load.seen:
        row = rows.pop(x["id"], None) if x["outcomes"] else None
        if x["outcomes"] and row is None:
            wrong.append(f"no row of {x}")
        elif row and (row["outcome"] not in x["outcomes"] or x["tokens"] not in (None, row["completion_tokens"])):
            wrong.append(f"{x}: its row says {row['outcome']}, {row['completion_tokens']} tokens")
        elif row:
            x["outcome"] = row["outcome"]
    wrong += [f"a row that nobody asked for: {id} {row['outcome']}" for id, row in rows.items()]
    said = place.verify()
    return wrong + ([] if " 0 differences" in said else [said])


# ---- what is told

def tell(place, load, lines, wrong):
    kinds, outcomes = collections.Counter(x["kind"] for x in load.seen), collections.Counter(x.get("outcome") for x in load.seen)
    print(f"{len(load.seen)} requests: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    print("rows: " + ", ".join(f"{n} {o}" for o, n in outcomes.most_common() if o)
          + f"; without one, as they should be: {sum(x['outcomes'] is None for x in load.seen)}")
    worker = metrics(place.home.ready()["workers"][0]["ops_url"])
    names = ("steps", "tokens", "preempted", "prefix_hit_pages", "prefix_miss_pages", "prefix_evicted_pages", "draft_tokens",
             "draft_accepted_tokens", "adapter_loads")
    print("worker: " + ", ".join(f"{name} {worker[f'tiergate_worker_{name}_total']:.0f}" for name in names))
    print("\n".join(lines))
    print(place.verify().strip())
    for line in wrong[:TOLD]:
        print(line)
    print(f"FAILED: {len(wrong)} findings" if wrong else "ok")


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"seed {seed}, {sys.argv[1]} s, load at start {os.getloadavg()[0]:.1f}", flush=True)
    sys.exit(main(float(sys.argv[1]), seed))
