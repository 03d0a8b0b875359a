"""What `make endurance` looks at while the load runs: memory, descriptors and threads of the processes, and the sizes of Redis,
PostgreSQL and the KV pool; and the rule by which they are flat."""
import os
import statistics
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

MIB = 1 << 20
# Name of a series, what a step from the second quarter to the last may be: a part of it, and so much more.
FLAT = {"private": (0.005, 2), "redis MiB": (0.02, 2), "redis keys": (0.02, 20), "fds": (0, 4), "threads": (0, 0),
        "postgres connections": (0, 1)}


def process(pid):
    """Of a process: MiB resident, its share, its own (no pages of files: who else maps the model changes nothing);
    descriptors; threads."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if ":  " in line)
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"rss": kib["Rss"] / 1024, "pss": kib["Pss"] / 1024,
            "private": kib["Private_Dirty"] / 1024,
            "fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": int(status["Threads"])}


def metrics(url):
    lines = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[:1] != "#"}


class Watch(threading.Thread):
    """Samples from start to stop. A sample is name -> number; `kind name` for a process."""

    def __init__(self, place, every):
        super().__init__(daemon=True)
        self.place, self.every = place, every
        self.samples, self.failed = [], None
        self.stopping = threading.Event()

    def run(self):
        begun = time.monotonic()
        try:
            while not self.stopping.is_set():
                self.samples.append({"seconds": time.monotonic() - begun} | look(self.place))
                self.stopping.wait(max(0, begun + len(self.samples) * self.every - time.monotonic()))
        except Exception as e:  # told with the result: a series that breaks off proves nothing
            self.failed = e

    def stop(self):
        self.stopping.set()
        self.join()
        return self.samples


def look(place):
    ready = place.home.ready()
    found = {}
    for kind, pid in (*((k, ready["pids"][k][0]) for k in ("gateway", "worker")), ("up", place.home.up.pid)):
        found |= {f"{kind} {name}": value for name, value in process(pid).items()}
    worker, gateway = metrics(ready["workers"][0]["ops_url"]), metrics(ready["ops_url"])
    for name in ("kv_free_tokens", "prefix_pages", "sequences", "waiting"):
        found[f"worker {name}"] = worker[f"tiergate_worker_{name}"]
    found["journal MiB"] = gateway["tiergate_journal_bytes"] / MIB
    found["connections"] = gateway["tiergate_http_connections"]
    redis = dict(line.split(":", 1) for line in place.redis("INFO", "memory").splitlines() if ":" in line)
    found["redis MiB"] = int(redis["used_memory"]) / MIB
    found["redis keys"] = int(place.redis("DBSIZE"))
    found["postgres connections"] = int(place.sql("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL"))
    return found


def quarters(samples, name):
    """Medians of the second and of the last quarter."""
    values, n = [s[name] for s in samples], len(samples)
    return statistics.median(values[n // 4:n // 2]), statistics.median(values[3 * n // 4:])


def slope(samples, name):
    """Growth an hour over the last three quarters: the median of the slopes of all pairs (Theil and Sen)."""
    late = samples[len(samples) // 4:]
    slopes = [(b[name] - a[name]) / (b["seconds"] - a["seconds"]) for i, a in enumerate(late) for b in late[i + 1:]]
    return statistics.median(slopes) * 3600 if slopes else 0.0


def table(samples):
    """Lines to print, and the names of the series that grow."""
    if len(samples) < 4:
        return [], ["too few samples to say"]
    lines, growing = [f"{'':24} {'least':>9} {'most':>9} {'2nd quarter':>12} {'last':>9} {'allowed':>9} {'an hour':>9}"], []
    for name in [name for name in samples[0] if name != "seconds"]:
        values, (early, late) = [s[name] for s in samples], quarters(samples, name)
        rule = FLAT.get(name) or FLAT.get(name.rpartition(" ")[2])
        allowed = early * (1 + rule[0]) + rule[1] if rule else None
        if rule and late > allowed:
            growing.append(name)
        lines.append(f"{name:24} {min(values):9.1f} {max(values):9.1f} {early:12.1f} {late:9.1f} "
                     f"{'' if allowed is None else format(allowed, '.1f'):>9} {slope(samples, name):+9.2f}"
                     + ("  GROWS" if name in growing else ""))
    return lines, growing
