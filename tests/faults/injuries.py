"""What can be done to a site: one function each, with the party it is done to and what the protocol may loosen for it.

A function returns when the injury is over (or has been dealt once); the supervisor starts again what it killed.
"""
import os
import resource
import shutil
import signal
import time
from dataclasses import dataclass
from typing import Callable

from servers import CLOCKS, RedisError


@dataclass
class Injury:
    name: str
    target: str  # prefix of the party: gw, w, redis, postgres
    deal: Callable  # (site, target name, random)
    loses_gateway: bool = False  # an exact row of its requests is not promised
    loses_redis: bool = False
    weight: int = 3


ALL = {}


def injury(target, **flags):
    def enter(f):
        name = f.__name__.replace("_", "-")
        ALL[name] = Injury(name, target, f, **flags)
        return f
    return enter


def kill(site, name):
    site.by_name[name].send(signal.SIGKILL)
    site.wait(f"the end of {name}", lambda: not site.by_name[name].is_alive() or site.by_name[name].child is None, 10)


def pause(site, name, seconds):
    site.by_name[name].send(signal.SIGSTOP)
    time.sleep(seconds)
    site.by_name[name].send(signal.SIGCONT)


# ---- gateways and workers

@injury("gw", loses_gateway=True, weight=6)
def gateway_killed(site, name, r):
    kill(site, name)


@injury("gw", loses_gateway=True)
def gateway_stopped(site, name, r):
    pause(site, name, r.uniform(2, 9))


@injury("gw", loses_gateway=True, weight=1)
def gateway_stopped_beyond_the_sweep(site, name, r):
    pause(site, name, 24)  # lease 5 s, missing for 10 s, a sweep each 5 s: the others have closed all


@injury("gw", weight=2)
def gateway_terminated(site, name, r):
    p = site.by_name[name]
    p.send(signal.SIGTERM)
    site.wait(f"{name} to drain", lambda: p.child is None or not p.is_alive(), 40)


@injury("w", weight=6)
def worker_killed(site, name, r):
    kill(site, name)


@injury("w")
def worker_stopped(site, name, r):
    pause(site, name, r.uniform(2, 12))


@injury("w", weight=2)
def worker_terminated(site, name, r):
    p = site.by_name[name]
    p.send(signal.SIGTERM)
    site.wait(f"{name} to drain", lambda: p.child is None or not p.is_alive(), 40)


@injury("gw", loses_gateway=True, weight=1)
def gateway_and_worker_killed(site, name, r):
    site.by_name[f"w{r.randrange(site.n_workers)}"].send(signal.SIGKILL)
    kill(site, name)


@injury("gw", loses_gateway=True)
def gateway_killed_before_its_commit(site, name, r):
    """PostgreSQL is out of reach, so rows wait in the recorder; then their gateway dies."""
    ms = int(r.uniform(300, 1500))
    site.proxy.command("refuse", f"{name}-pg", ms)
    time.sleep(ms / 1000 - 0.1)
    kill(site, name)


# ---- Redis

def wait_redis(site):
    site.wait("redis", lambda: site.redis_call("PING") == b"PONG")


def call(site, *words):
    """As soon as Redis answers: another injury may have it down."""
    answers = []
    site.wait("redis", lambda: answers.append(site.redis_call(*words)) or True)
    return answers[0]


@injury("redis", loses_redis=True)
def redis_killed_with_its_log(site, name, r):
    kill(site, "redis")
    wait_redis(site)


@injury("redis", loses_redis=True)
def redis_killed_and_emptied(site, name, r):
    p = site.by_name["redis"]
    p.down = True
    kill(site, "redis")
    shutil.rmtree(site.path("redis", "appendonlydir"), ignore_errors=True)
    time.sleep(r.choice([0, 0, 1, 7]))
    p.down = False
    wait_redis(site)


@injury("redis", loses_redis=True)
def redis_wiped(site, name, r):
    call(site, "FLUSHALL")


@injury("redis", loses_redis=True, weight=2)
def redis_out_of_memory(site, name, r):
    call(site, "CONFIG", "SET", "maxmemory", "1mb")
    time.sleep(r.uniform(1, 6))
    call(site, "CONFIG", "SET", "maxmemory", "0")


@injury("redis", loses_redis=True)
def redis_stopped(site, name, r):
    pause(site, "redis", r.uniform(1, 8))


SNAPSHOT = """local all = {}
for _, key in ipairs(redis.call('KEYS', 'tg:*')) do
  all[#all + 1] = {key, redis.call('DUMP', key), redis.call('PTTL', key)}
end
return all"""
ROLL_BACK = """local is_there = {}
for i = 1, #ARGV, 3 do is_there[ARGV[i]] = true end
for _, key in ipairs(redis.call('KEYS', 'tg:*')) do
  if not is_there[key] then redis.call('DEL', key) end
end
for i = 1, #ARGV, 3 do redis.call('RESTORE', ARGV[i], math.max(0, tonumber(ARGV[i + 2])), ARGV[i + 1], 'REPLACE') end"""


@injury("redis", loses_redis=True)
def redis_failed_over(site, name, r):
    """What a replica that was a little behind would have: everything of a moment ago, the rest is gone. Workers that
    hang until then find a queue, so that claims are among what is undone."""
    workers = site.roles("w") if r.random() < 0.7 else []
    for w in workers:
        w.send(signal.SIGSTOP)
    time.sleep(0.2 if workers else 0)
    then = call(site, "EVAL", SNAPSHOT, 0)
    for w in workers:
        w.send(signal.SIGCONT)
    time.sleep(r.uniform(0.02, 0.3))
    call(site, "EVAL", ROLL_BACK, 0, *(part for entry in then for part in entry))


@injury("redis", loses_redis=True, weight=1)
def functions_lost(site, name, r):
    call(site, "FUNCTION", "FLUSH")


# ---- PostgreSQL

def wait_postgres(site):
    site.wait("postgres", lambda: site.sql("SELECT 1") == [["1"]])


@injury("postgres")
def postgres_stopped_hard(site, name, r):
    p = site.by_name["postgres"]
    p.down = True
    p.send(signal.SIGQUIT)  # pg_ctl stop -m immediate
    site.wait("the end of postgres", lambda: p.child is None or not p.is_alive(), 20)
    time.sleep(r.choice([0, 1, 4]))
    p.down = False
    wait_postgres(site)


# ---- the network

@injury("gw", loses_gateway=True)
def gateway_cut_from_redis(site, name, r):
    ms = int(r.choice([1, 300, 2000, 6500]))
    site.proxy.command("refuse", f"{name}-redis", ms)
    time.sleep(ms / 1000)


@injury("gw", loses_gateway=True)
def gateway_stalled_from_redis(site, name, r):
    seconds = r.uniform(0.5, 8)
    site.proxy.command("stall", f"{name}-redis", int(seconds * 1000))
    time.sleep(seconds)


@injury("w")
def worker_cut_from_redis(site, name, r):
    ms = int(r.choice([1, 300, 2000, 6500]))
    site.proxy.command("refuse", f"{name}-redis", ms)
    time.sleep(ms / 1000)


@injury("w")
def worker_stalled_from_redis(site, name, r):
    seconds = r.uniform(0.5, 8)
    site.proxy.command("stall", f"{name}-redis", int(seconds * 1000))
    time.sleep(seconds)


@injury("gw")
def gateway_cut_from_postgres(site, name, r):
    ms = int(r.choice([1, 500, 4000]))
    site.proxy.command("refuse", f"{name}-pg", ms)
    time.sleep(ms / 1000)


@injury("gw", weight=6)
def commit_without_its_answer(site, name, r):
    for _ in range(r.randrange(1, 5)):
        site.proxy.command("swallow", f"{name}-pg", "INSERT INTO usage")
        time.sleep(r.uniform(0.1, 0.6))


# ---- machine

@injury("gw", weight=2)
def disk_full(site, name, r):
    path = site.path(name, "journal", "filler")
    with open(path, "wb", buffering=0) as f:
        try:
            while True:
                f.write(bytes(1 << 14))
        except OSError:
            pass
    time.sleep(r.uniform(0.5, 3))
    os.unlink(path)


@injury("gw", weight=2)
def descriptors_exhausted(site, name, r):
    """For a while there is hardly a descriptor left for anything new."""
    p = site.by_name[name]
    site.wait(name, p.is_alive)
    try:
        pid = p.child.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, before[1]))
        time.sleep(r.uniform(1, 4))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    except (AttributeError, FileNotFoundError, ProcessLookupError):
        pass  # another injury has killed it; the next one is born with all of them


@injury("gw", weight=2)
def clock_jumped(site, name, r):
    site.set_clock("gateways", r.choice([-7200, -30, 30, 7200, 90000]))
    time.sleep(2)


@injury("redis", loses_redis=True, weight=2)
def clock_of_redis_jumped(site, name, r):
    """Forward, leases that it keeps end at once; back, they live so much longer: less than a run rests at its end."""
    for seconds in (r.choice([-20, -2, 2, 20]), 0):
        site.set_clock("redis", seconds)
        time.sleep(r.uniform(0.5, 4))


@injury("postgres", weight=1)
def clock_of_postgres_jumped(site, name, r):
    for seconds in (r.choice([-7200, -30, 30, 7200]), 0):
        site.set_clock("postgres", seconds)
        time.sleep(r.uniform(0.5, 3))


# ---- at a named stage: a process dies by its own hand

GATEWAY_POINTS = {
    "A": "accept.after", "B": "hold.after", "C": "enqueue.after", "D": "claim_frame.before", "E": "frame.first",
    "F": "frame.middle", "G": "settle.before", "H": "settle.after", "H2": "commit.before", "H3": "commit.after",
    "H4": "drop.after",
}
WORKER_POINTS = {
    "D": "worker.claim.after", "D2": "worker.payload.after", "D3": "worker.claim_frame.after",
    "E": "worker.step.before", "F": "worker.step.after", "F2": "worker.send.after",
}


def arm(site, name, point, action, at=20):
    """Starts the process anew with one failpoint; True when it died of it (or stopped) within 12 s."""
    p = site.by_name[name]
    site.wait(f"{name} alive", p.is_alive, 10)
    p.once = {"TIERGATE_FAILPOINTS": f"{point}={action}@{at}"}
    n = len(p.exits)
    p.send(signal.SIGKILL)
    site.wait(f"the end of {name}", lambda: len(p.exits) > n, 10)
    site.wait(f"{name} anew", p.is_alive, 10)
    until = time.monotonic() + 12
    while time.monotonic() < until:
        if len(p.exits) > n + 1:
            return p.exits[-1] == -signal.SIGKILL
        if action == "stop" and is_stopped(p):
            return True
        time.sleep(0.05)
    return False


def is_stopped(p):
    try:
        return p.is_alive() and open(f"/proc/{p.child.pid}/stat").read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@injury("gw", loses_gateway=True, weight=8)
def gateway_killed_at_a_stage(site, name, r):
    arm(site, name, r.choice(list(GATEWAY_POINTS.values())), "kill", r.randrange(1, 60))


@injury("w", weight=8)
def worker_killed_at_a_stage(site, name, r):
    arm(site, name, r.choice(list(WORKER_POINTS.values())), "kill", r.randrange(1, 60))


def heal(site):
    """Everything runs again and answers."""
    for p in site.processes:
        p.send(signal.SIGCONT)
        p.down = False
    for name in CLOCKS:
        site.set_clock(name, 0)
    wait_redis(site)
    try:
        site.redis_call("CONFIG", "SET", "maxmemory", "0")
    except RedisError:
        pass
    wait_postgres(site)
    site.wait_ready(90)


__all__ = ["ALL", "heal", "arm", "GATEWAY_POINTS", "WORKER_POINTS"]
