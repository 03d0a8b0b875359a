"""Cells of the matrix that need clients of their own: each asks, does the harm and asserts what the design promises.

What these clients see joins the history, so that the checker holds their rows to the same rules as all others. A cell
returns True, or raises AssertionError with what it found.
"""
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import load
from injuries import Injury, kill
from mutants import build_other_version

MODEL = "faults"
TINY = ((socket.SOL_SOCKET, socket.SO_RCVBUF, 4096), (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536))
STEP_MS = 30  # of a worker that is slowed down, so that something can happen in mid-stream
PROMPTS = 4  # of which each is asked by two tenants
POISON, LONG, WIDE, SHORT, PROMPT = range(5)  # the kinds below; PROMPT and those after it: the prompts


def make_kinds():
    """Beside those of the load, for the clients here."""
    def completion(prompt, n=1, **options):
        body = {"model": MODEL, "seed": 5, "prompt": prompt, "n": n} | options
        return {"path": "/v1/completions", "n": n, "body": body}
    return [completion("p" * 111), completion("long", seed=12),  # goes on to its length
            completion("wide", n=8, seed=55, logprobs=5),  # and so do several of these
            completion("short"),
            *(completion(f"{i} asked by two tenants, and long enough to fill some pages") for i in range(PROMPTS))]


class Left(Exception):
    """The client goes away."""


class Client(load.Client):
    """One client, moved by hand. `on_text` is called once, when text has come."""

    def __init__(self, site, key, options=()):
        plan = {"seed": "cell", "ports": site.gateway_ports(), "keys": [key["key"]], "kinds": site.kinds}
        super().__init__(plan, f"cell {len(site.told)}", self.note, threading.Event(), lambda: None)
        self.site, self.key, self.options, self.on_text = site, site.keys.index(key), options, None

    def note(self, x):
        self.site.told.append(x | {"key": self.key})

    def connect(self, gateway):
        if gateway not in self.open:
            self.open[gateway] = load.Connection(self.plan["ports"][gateway], self.options)
        return self.open[gateway]

    def take_event(self, x, event):
        end = super().take_event(x, event)
        if self.on_text and any(x["texts"]):
            call, self.on_text = self.on_text, None
            call(x)
        return end

    def ask(self, connection, x):
        try:
            return super().ask(connection, x)
        except Left:
            connection.reset()
            return "cancelled"

    def request(self, kind, gateway=0, **options):
        self.n += 1
        kind += self.site.n_load_kinds
        x = {"n": f"{self.index}.{self.n}", "gateway": gateway, "key": 0, "kind": kind, "stream": False,
             "n_choices": self.site.kinds[kind]["n"], "max_tokens": load.ABSENT, "cancel_at": None, "idem": None,
             "deadline_ms": 60000} | options  # it outlasts three lost workers
        self.try_out(x)
        return x


def expect(is_true, what, x=None):
    if not is_true:
        raise AssertionError(f"{what}{': ' + str({k: v for k, v in x.items() if k != 'texts'}) if x else ''}")


def row_of(site, x, seconds=30):
    """(outcome, attempts, prompt, cached, completion) of its row, once it is there."""
    found = []

    def has_come():
        found[:] = site.sql("SELECT outcome, attempts, prompt_tokens, cached_tokens, completion_tokens FROM usage WHERE "
                            f"request_id = '{x['id']}'")
        return bool(found)
    site.wait(f"the row of {x['id']}", has_come, seconds)
    return found[0][0], *map(int, found[0][1:])


def start_anew(site, name, env=None, program=None):
    """With this environment and program from now on; what runs is ended in good order."""
    p = site.by_name[name]
    n = len(p.exits)
    p.env = p.env | (env or {})
    p.argv[0] = program or p.argv[0]
    p.send(signal.SIGTERM)
    site.wait(f"the end of {name}", lambda: len(p.exits) > n, 60)
    site.wait(f"{name} anew", lambda: p.is_alive() and site.is_ready(name), 60)


@contextmanager
def failpoints(site, prefix, points):
    """All roles with this prefix run with these failpoints meanwhile."""
    names = [p.name for p in site.roles(prefix)]
    try:
        for name in names:
            start_anew(site, name, {"TIERGATE_FAILPOINTS": points})
        yield
    finally:
        for name in names:
            start_anew(site, name, {"TIERGATE_FAILPOINTS": ""})


def new_key(site, tenant, user):
    out = json.loads(site.command("key", "create", "--config", site.path("w0.ini"), "--tenant", tenant, "--user", user,
                                  "--create-missing", "--json"))
    owner = site.sql(f"SELECT u.tenant_id, u.id FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = '{out['id']}'")[0]
    site.sql(f"INSERT INTO assignments (tenant_id, name, model) VALUES ('{owner[0]}', '{MODEL}', '{MODEL}') ON CONFLICT DO NOTHING")
    site.keys.append(out | {"tenant_id": owner[0], "user_id": owner[1]})
    return site.keys[-1]


def limit_user(site, user, kind, value):
    site.command("quota", "set", "--config", site.path("w0.ini"), "--tenant", "tenant0", "--user", user, kind, str(value))


# ---- one request that kills its worker

def deaths(site):
    return sum(code == -signal.SIGKILL for p in site.roles("w") for code in p.exits)


def poison_request(site, name, r):
    """It takes three workers and no more, its neighbours are answered; then it is refused without a worker."""
    neighbours, ended = [], threading.Event()

    def ask_beside():
        client = Client(site, site.keys[1])
        while not ended.is_set():
            neighbours.append(client.request(LONG, max_tokens=16))
    tokens = site.kinds[site.n_load_kinds + POISON]["prompt_tokens"]
    with failpoints(site, "w", f"worker.prompt.{tokens}=kill"):
        before, beside = deaths(site), threading.Thread(target=ask_beside)
        beside.start()
        client = Client(site, site.keys[0])
        x, again = (client.request(POISON, max_tokens=8, expected="poison_request") for _ in range(2))
        ended.set()
        beside.join()
        n = deaths(site) - before
    for y in (x, again):
        expect((y["status"], y["code"], y["retry"]) == (500, "poison_request", "false"), "not refused as poison", y)
    expect(n == 3, f"{n} workers died, not 3", x)
    expect(row_of(site, x) == ("dead_letter", 3, 0, 0, 0), f"its row is {row_of(site, x)}", x)
    for y in neighbours:
        expect(y["end"] == "done", "a neighbour suffers", y)
    return bool(neighbours)


# ---- a client that does not read

def slow_reader(site, name, r):
    """The gateway's cap cuts it while it sits there; the row has what the socket took, and the hold is settled."""
    client, rows = Client(site, site.keys[0], TINY), []

    def stop_reading(x):
        rows.append(row_of(site, x, 60))
        raise Left
    client.on_text = stop_reading
    x = client.request(WIDE, stream=True)
    expect(rows, "no text came", x)
    outcome, _, _, _, completion = rows[0]
    whole = site.kinds[site.n_load_kinds + WIDE]["tokens"]
    expect(outcome == "client_gone" and 0 < completion < whole, f"not cut: {outcome}, {completion} of {whole} tokens", x)
    return True


# ---- a key revoked, a limit lowered in mid-stream

def revoked_in_mid_stream(site, name, r):
    """The stream ends with an error event before its end, its row says why, and nothing new begins anywhere."""
    key = new_key(site, "tenant0", "revoked")
    gateways = range(site.n_gateways)
    with failpoints(site, "w", f"worker.step.before=sleep:{STEP_MS}"):
        for gateway in gateways:  # both know the key
            expect(Client(site, key).request(SHORT, gateway)["end"] == "done", "not answered")
        client = Client(site, key)
        client.on_text = lambda x: site.command("key", "revoke", "--config", site.path("w0.ini"), key["id"])
        x = client.request(LONG, stream=True, expected="invalid_api_key")
        time.sleep(2)  # P5
        after = [Client(site, key).request(SHORT, gateway, expected="invalid_api_key") for gateway in gateways]
    expect((x["end"], x["code"]) == ("error_event", "invalid_api_key"), "not ended by an error event", x)
    outcome, _, _, _, completion = row_of(site, x)
    expect((outcome, completion) == ("revoked", len(x["texts"][0])), f"its row: {outcome}, {completion} tokens", x)
    for y in after:
        expect(y["status"] == 401, "a revoked key begins something", y)
    return True


def lowered_in_mid_stream(site, name, r):
    """What is granted is handed, then it ends as its length."""
    key = new_key(site, "tenant0", "lowered")
    limit_user(site, "lowered", "--tokens-per-day", 10000)
    with failpoints(site, "w", f"worker.step.before=sleep:{STEP_MS}"):
        client = Client(site, key)
        client.on_text = lambda x: limit_user(site, "lowered", "--tokens-per-day", 20)
        x = client.request(LONG, stream=True)
    expect((x["end"], x["finish"]) == ("done", ["length"]), "not ended as its length", x)
    expect(x["usage"] == site.granted, f"{x['usage']} tokens, {site.granted} were granted", x)
    return True


# ---- a deadline in mid-stream

def deadline_in_mid_stream(site, name, r):
    """However close the deadline is to a token, the row has what the client got (P3)."""
    told, lock = [], threading.Lock()

    def ask_some(n):
        client = Client(site, site.keys[0])
        for _ in range(n):
            x = client.request(WIDE, r.randrange(site.n_gateways), stream=True, deadline_ms=r.randrange(100, 1000))
            with lock:
                told.append(x)
    with failpoints(site, "w", "worker.step.before=sleep:5"):
        threads = [threading.Thread(target=ask_some, args=(10,)) for _ in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    for x in told:
        if x["end"] == "error_event":
            outcome, _, _, _, completion = row_of(site, x)
            n = sum(map(len, x["texts"])) + x["finish"].count("stop")
            expect(outcome == "deadline" and n <= completion <= n + 8, f"its row: {outcome}, {completion} tokens, {n} came", x)
    return any(x["code"] == "deadline_exceeded" and any(x["texts"]) for x in told)


# ---- the prefix cache

def cross_tenant_cache(site, name, r):
    """Another tenant's prefix is never found and one's own is, whatever is lost in between."""
    harm = [lambda: None, lambda: kill(site, f"w{r.randrange(site.n_workers)}"), lambda: site.redis_call("FLUSHALL"),
            lambda: kill(site, "gw1")]
    clients = [Client(site, new_key(site, f"cache{i}", "user")) for i in range(2)]
    hits = 0
    for i in range(PROMPTS):
        for client in clients:  # the second asks what the first one asked just now
            answers = [client.request(PROMPT + i, max_tokens=4) for _ in range(6)]
            rows = [row_of(site, x) for x in answers if x["end"] == "done"]
            expect(rows, "not answered", answers[0])
            expect(rows[0][3] == 0, "it finds what it never asked", answers[0])
            hits += sum(row[3] > 0 for row in rows)
        harm[i]()
        site.wait_ready()
        time.sleep(1)  # a lease is found lost, and begun again
    expect(hits > 0, "one's own prefix is not found", answers[0])
    return True


# ---- two versions

def two_versions(site, name, r):
    """Half of the site runs a version whose function libraries have other names; either half may be lost."""
    own, other = site.binary, str(build_other_version())
    try:
        for role in ("gw1", "w1"):
            start_anew(site, role, program=other)
        time.sleep(3)
        for role in ("gw1", "w0", "w1"):
            kill(site, role)
            site.wait_ready()
            time.sleep(2)
        names = [entry[1] for entry in site.redis_call("FUNCTION", "LIST")]
        expect(len(names) == 4, f"Redis has {names}")
    finally:
        for role in ("gw1", "w1"):
            start_anew(site, role, program=own)
    return True


# ---- memory and threads

def memory_exhausted(site, name, r):
    """A gateway that can have no more memory refuses what is new with 503, and serves again when it can."""
    pid = site.by_name[name].child.pid
    standing = Client(site, site.keys[0])
    standing.request(SHORT)
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    used = 4096 * int(open(f"/proc/{pid}/statm").read().split()[0])
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (4 << 20), before[1]))
    time.sleep(1)
    answers = [client.request(SHORT) for client in (standing, Client(site, site.keys[0]))]  # an old connection and a new one
    time.sleep(2)
    resource.prlimit(pid, resource.RLIMIT_AS, before)
    time.sleep(0.1)
    after = Client(site, site.keys[0]).request(SHORT)
    for x in answers:
        expect((x["status"], x["code"]) == (503, "server_is_overloaded"), "not refused for its lack of memory", x)
    expect(after["end"] == "done", "it does not serve again", after)
    expect(site.by_name[name].child.pid == pid, f"{name} did not live through it")
    return True


def n_threads(site):
    return {p.name: len(os.listdir(f"/proc/{p.child.pid}/task")) for p in site.roles()}


def threads_exhausted(site, name, r):
    """Nothing that runs starts a thread, so a lack of them is met at the start only: it fails, and says of what."""
    before, any_port = n_threads(site), "127.0.0.1:0"
    options = [f"gateway.listen={any_port}", f"gateway.ops_listen={any_port}", f"worker.ops_listen={any_port}",
               f"general.data_dir={site.path('starved')}"]
    starved = site.dir / "starved"
    shutil.copytree(site.path("secrets"), starved / "secrets")
    nobody = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"] if os.geteuid() == 0 else []
    if nobody:
        for path in (starved, *starved.rglob("*")):
            os.chown(path, 65533, 65533)
        for path in (site.dir / "s").rglob("*"):
            path.chmod(0o777)
    for role, config in (("gateway", "gw1.ini"), ("worker", "w1.ini")):
        done = subprocess.run(["prlimit", "--nproc=1", *nobody, site.binary, role, "--config", site.path(config),
                               *(word for o in options for word in ("--set", o))], capture_output=True, text=True, timeout=20)
        expect(done.returncode and "thread" in done.stderr, f"the {role} does not say that it lacks threads: {done.stderr[-300:]}")
    expect(n_threads(site) == before, f"threads: {before}, and later {n_threads(site)}")
    return True


# ---- the clock of Redis

def clock_of_redis(site, name, r):
    """A minute's limit is there again when Redis' clock is a minute on, once; a clock that goes back opens no second one."""
    key = new_key(site, "tenant0", "clock")
    limit_user(site, "clock", "--requests-per-minute", 3)

    def used_up():
        """How many are answered, until none is."""
        for n in range(10):
            x = Client(site, key).request(SHORT, r.randrange(site.n_gateways))
            if x["code"] == "rate_limit_exceeded":
                return n
            expect(x["end"] == "done", "not answered", x)
        return 10

    def jump(seconds):
        site.set_clock("redis", seconds)
        time.sleep(2)  # leases that ended have begun again
        site.wait_ready()
    if time.time() % 60 > 30:
        time.sleep(60 - time.time() % 60)  # the minute does not end by itself
    n = [used_up()]
    for seconds in (70, 0, 70):
        jump(seconds)
        n.append(used_up())
    site.set_clock("redis", 0)
    expect(n == [3, 3, 0, 0], f"answered before, a minute on, back, and there again: {n}, not [3, 3, 0, 0]")
    return True


def make_cells():
    """(fault, stage, injury, target, deal), as matrix.py has them. An injury that is None must harm nobody else."""
    def cell(text, stage, deal, target="gw0", **loosens):
        injury = Injury(text.replace(" ", "-"), target, None, **loosens) if loosens else None
        return text, stage, injury, target, deal
    return [
        cell("poison request kills its worker", "D", poison_request, "w0", loses_gateway=False),
        cell("slow reader, zero window", "F", slow_reader),
        cell("revocation in mid-stream", "F", revoked_in_mid_stream),
        cell("quota lowered in mid-stream", "F", lowered_in_mid_stream),
        cell("deadline in mid-stream", "F", deadline_in_mid_stream, loses_gateway=False),
        cell("cross-tenant cache, with worker losses", "D-E", cross_tenant_cache, "gw1", loses_gateway=True, loses_redis=True),
        cell("version N and N+1, workers of both lost", "A-H", two_versions, "gw1", loses_gateway=True),
        cell("memory exhausted", "A-F", memory_exhausted, loses_gateway=False),
        cell("threads exhausted", "-", threads_exhausted),
        cell("clock of Redis jumps, a window rolls once", "A-H", clock_of_redis, "redis", loses_redis=True),
    ]
