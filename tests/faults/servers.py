"""A whole installation of real processes in one directory: PostgreSQL, Redis, chaos proxy, gateways and workers.

Roles run by themselves (`tiergate gateway`, `tiergate worker`), each with a data directory and addresses of its own, so
that each can be killed, stopped and cut off alone; a supervisor thread starts again what died. Nothing listens beyond
loopback and unix sockets.
"""
import glob
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from model import CONTEXT, build

ROOT = Path(__file__).resolve().parents[2]
MODEL = "faults"
RESTART_SECONDS = 0.3
CLOCK_SHIM = ROOT / "build" / "tests" / "clock_shim.so"
CLOCKS = ("gateways", "redis", "postgres")
DISK_BYTES = "64m"
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def postgres_program(name):
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return found[-1] if found else shutil.which(name)


def missing_programs():
    """What a site needs and this machine lacks."""
    missing = [n for n in ("initdb", "postgres", "psql") if not postgres_program(n)]
    return missing + [n for n in ("redis-server", "setpriv") if not shutil.which(n)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def as_postgres(argv):
    """PostgreSQL refuses root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT", *argv] if os.geteuid() == 0 else argv


def bound(argv):
    """Ends with the thread that starts it, however that ends."""
    return ["setpriv", "--pdeathsig=INT", *argv]


class Process:
    """A supervised child. `down` holds it down; `env` is for the next start only."""

    def __init__(self, name, argv, log, env=None):
        self.name, self.argv, self.log, self.env = name, argv, log, env or {}
        self.once = {}
        self.child, self.down, self.died_at = None, True, 0.0
        self.exits = []  # status of each end

    def start(self):
        environment = os.environ | self.env | self.once
        self.once = {}
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(bound(self.argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=environment, start_new_session=True)
        self.down = False

    def send(self, number):
        child = self.child  # the supervisor takes it away when it has ended
        if child is not None and child.poll() is None:
            child.send_signal(number)

    def is_alive(self):
        child = self.child
        return child is not None and child.poll() is None

    def note_end(self):
        """True once per death."""
        if self.child is None or self.child.poll() is None:
            return False
        self.exits.append(self.child.returncode)
        self.child, self.died_at = None, time.monotonic()
        return True

    def stop(self, number=signal.SIGTERM, seconds=20):
        self.down = True
        if not self.child:
            return
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.note_end()


class Proxy:
    """The chaos proxy's links and commands."""

    def __init__(self, program, links):
        self.lock = threading.Lock()
        self.child = subprocess.Popen(bound([program, *(f"{n}={a}={b}" for n, a, b in links)]), stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.child.stdout.readline() == "ok\n"

    def command(self, *words):
        with self.lock:
            self.child.stdin.write(" ".join(map(str, words)) + "\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline()
        assert answer == "ok\n", (words, answer)

    def close(self):
        self.child.stdin.close()
        self.child.wait()


class Site:
    """small_disks: each gateway's journal on a file system of its own, where this machine lets us: then a list that is not
    empty."""

    def __init__(self, directory, binary=None, gateways=2, workers=2, options=(), small_disks=False, context=CONTEXT):
        self.dir = Path(directory)
        self.binary = str(binary or ROOT / "build" / "tiergate")
        self.n_gateways, self.n_workers = gateways, workers
        self.context = context  # of the model, in tokens
        self.options = dict(options)  # "section.key": value, for every role
        self.processes, self.by_name = [], {}
        self.wants_disks, self.small_disks = small_disks, []
        self.ports = [free_port() for _ in range(2 * gateways + workers)]
        self.ended = threading.Event()
        self.kinds, self.n_load_kinds = [], 0  # what is asked; those the load asks come first
        self.told = []  # history of the clients that a cell of the matrix moves by hand
        self.granted = 160  # tokens of a request that names none; what it makes beyond that is an extension
        self.keys = []  # what `key create --json` printed, with tenant_id and user_id
        for name in ("s", "logs", "secrets"):
            (self.dir / name).mkdir(parents=True)
        os.chmod(self.dir, 0o755)
        shutil.copy(CLOCK_SHIM, self.dir)  # where PostgreSQL's user can read it
        for name in CLOCKS:
            (self.dir / f"{name}.clock").write_bytes(bytes(8))

    def impossible(self):
        """Injuries that this machine does not let us deal."""
        return [] if self.small_disks else ["disk-full"]

    # ---- files

    def path(self, *names):
        return str(self.dir.joinpath(*names))

    def write_secrets(self):
        for name in ("pepper", "cluster"):
            path = self.path("secrets", name)
            with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
                f.write(f"1 {secrets.token_hex(32)}\n")

    def write_config(self, name, redis, postgres, ports):
        data = self.dir / name
        data.mkdir()
        (data / "secrets").symlink_to(self.dir / "secrets")
        values = {
            "general.data_dir": data, "general.log_level": "debug" if name.startswith("w") else "info",
            "redis.address": f"unix:{redis}", "postgres.url": f"host={postgres} user=tiergate dbname=tiergate",
            "gateway.listen": f"127.0.0.1:{ports[0]}", "gateway.admin_listen": "127.0.0.1:0",
            "gateway.ops_listen": f"127.0.0.1:{ports[-1]}", "gateway.reactors": 1, "gateway.pool_threads": 2,
            "gateway.request_ms": 20000, "gateway.drain_grace_ms": 0, "gateway.stream_buffer_bytes": "64KiB",
            "gateway.default_max_tokens": self.granted, "worker.threads": 1, "worker.slots": 16, "worker.kv_bytes": "4MiB",
            "worker.ops_listen": f"127.0.0.1:{ports[-1]}",
            f"model {MODEL}.path": self.path("model.gguf"), f"model {MODEL}.tier": "7b",
            f"model {MODEL}.template": "chatml", f"model {MODEL}.price_in": 3, f"model {MODEL}.price_cached": 1,
            f"model {MODEL}.price_out": 7,
        } | self.options
        sections = {}
        for key, value in values.items():
            section, _, field = key.rpartition(".")
            sections.setdefault(section, []).append(f"{field} = {value}")
        text = "\n".join(f"[{s}]\n" + "\n".join(lines) for s, lines in sections.items())
        (self.dir / f"{name}.ini").write_text(text + "\n")

    # ---- processes

    def add(self, name, argv):
        p = Process(name, argv, self.path("logs", f"{name}.log"))
        self.processes.append(p)
        self.by_name[name] = p
        return p

    def make_postgres(self):
        data, sockets = self.dir / "postgres", self.dir / "s" / "pg"
        for d in (data, sockets):
            d.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(d, "postgres", "postgres")
        with open(self.path("logs", "initdb.log"), "wb") as out:
            subprocess.run(as_postgres([postgres_program("initdb"), "-D", str(data), "-U", "tiergate", "--auth=trust",
                                        "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]),
                           check=True, stdout=out, stderr=out, cwd="/")
        self.add("postgres", as_postgres([postgres_program("postgres"), "-D", str(data), "-k", str(sockets), "-c",
                                          "listen_addresses=", "-c", "max_connections=100", "-c", "shared_buffers=32MB"])).env = self.clock_env("postgres")

    def make_redis(self):
        (self.dir / "redis").mkdir()
        self.add("redis", ["redis-server", "--port", "0", "--unixsocket", self.path("s", "redis.sock"), "--dir",
                           self.path("redis"), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
                           "--maxmemory-policy", "noeviction"]).env = self.clock_env("redis")

    def clock_env(self, name):
        return {"LD_PRELOAD": self.path("clock_shim.so"), "CLOCK_SHIM": self.path(f"{name}.clock")}

    def set_clock(self, name, seconds):
        """The wall clock of one of CLOCKS: so far from the true one, at once."""
        with open(self.path(f"{name}.clock"), "r+b") as f:
            f.write(struct.pack("<q", round(seconds * 1000)))

    def mount_disk(self, name):
        journal = self.path(name, "journal")
        os.mkdir(journal)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", journal]
        if self.wants_disks and subprocess.run(mount, capture_output=True).returncode == 0:
            self.small_disks.append(journal)

    def make_roles(self):
        links = []
        for i in range(self.n_gateways):
            (self.dir / "s" / f"gw{i}-pg").mkdir()
            links.append((f"gw{i}-redis", self.path("s", f"gw{i}-redis.sock"), self.path("s", "redis.sock")))
            links.append((f"gw{i}-pg", self.path("s", f"gw{i}-pg", ".s.PGSQL.5432"),
                          self.path("s", "pg", ".s.PGSQL.5432")))
            self.write_config(f"gw{i}", links[-2][1], self.path("s", f"gw{i}-pg"), self.ports[2 * i:2 * i + 2])
            self.add(f"gw{i}", [self.binary, "gateway", "--config", self.path(f"gw{i}.ini")]).env = self.clock_env("gateways")
            self.mount_disk(f"gw{i}")
        for i in range(self.n_workers):
            links.append((f"w{i}-redis", self.path("s", f"w{i}-redis.sock"), self.path("s", "redis.sock")))
            self.write_config(f"w{i}", links[-1][1], self.path("s", "pg"), [0, self.ports[2 * self.n_gateways + i]])
            self.add(f"w{i}", [self.binary, "worker", "--config", self.path(f"w{i}.ini")])
        return links

    def gateway_ports(self):
        return self.ports[:2 * self.n_gateways:2]

    def ops_port(self, name):
        i = int(name[-1])
        return self.ports[2 * i + 1] if name.startswith("gw") else self.ports[2 * self.n_gateways + i]

    # ---- asking

    def sql(self, text, seconds=30):
        """Rows of text. Straight to the server, not through the proxy."""
        argv = [postgres_program("psql"), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h",
                self.path("s", "pg"), "-U", "tiergate", "-d", "tiergate", "-c", text]
        out = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds).stdout
        return [line.split("\t") for line in out.splitlines()]

    def redis_call(self, *words):
        """One command, its answer as Python values; straight to the server."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(self.path("s", "redis.sock"))
            encoded = [w if isinstance(w, bytes) else str(w).encode() for w in words]
            s.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
            with s.makefile("rb") as f:
                return read_answer(f)

    # ---- waiting

    def wait(self, what, is_true, seconds=60):
        until = time.monotonic() + seconds
        while True:
            try:
                if is_true():
                    return
            except (OSError, subprocess.SubprocessError, RedisError):
                pass
            if time.monotonic() > until:
                raise TimeoutError(f"{what} does not come within {seconds} s: see {self.dir}/logs")
            time.sleep(0.05)

    def is_ready(self, name):
        try:
            with socket.create_connection(("127.0.0.1", self.ops_port(name)), 2) as s:
                s.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return s.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def roles(self, prefix=""):
        return [p for p in self.processes if p.name.startswith(prefix) and p.name[:1] in "gw"]

    def wait_ready(self, seconds=60):
        for p in self.roles():
            self.wait(p.name, lambda name=p.name: self.is_ready(name), seconds)

    # ---- life

    def start(self, proxy_program, budget, tenants=3, keys_each=2):
        Path(self.path("model.gguf")).write_bytes(build(context=self.context))
        self.write_secrets()
        self.make_postgres()
        self.make_redis()
        links = self.make_roles()
        self.proxy = Proxy(proxy_program, links)
        for name in ("postgres", "redis"):
            self.by_name[name].start()
        self.wait("redis", lambda: self.redis_call("PING") == b"PONG")
        admin = [postgres_program("psql"), "-X", "-q", "-h", self.path("s", "pg"), "-U", "tiergate", "-d", "postgres",
                 "-c", "CREATE DATABASE tiergate"]
        self.wait("postgres", lambda: subprocess.run(admin, capture_output=True).returncode == 0)
        self.command("migrate", "--config", self.path("w0.ini"))
        self.make_keys(tenants, keys_each)
        self.set_limits(budget)
        for p in self.roles():
            p.start()
        self.supervisor = threading.Thread(target=self.supervise, daemon=True)
        self.supervisor.start()
        self.keeper = threading.Thread(target=self.keep_journals, daemon=True)
        self.keeper.start()
        self.wait_ready()

    def command(self, *words):
        return subprocess.run([self.binary, *words], check=True, capture_output=True, text=True).stdout

    def make_keys(self, tenants, keys_each):
        for t in range(tenants):
            for k in range(keys_each):
                out = self.command("key", "create", "--config", self.path("w0.ini"), "--tenant", f"tenant{t}", "--user",
                                   f"user{k}", "--create-missing", "--json")
                self.keys.append(json.loads(out))
        owners = {r[0]: {"tenant_id": r[1], "user_id": r[2]} for r in
                  self.sql("SELECT k.id, u.tenant_id, u.id FROM api_keys k JOIN users u ON u.id = k.user_id")}
        for k in self.keys:
            k.update(owners[k["id"]])
        self.sql(f"INSERT INTO assignments (tenant_id, name, model) SELECT id, '{MODEL}', '{MODEL}' FROM tenants")

    def set_limits(self, budget):
        """tenant0 never reaches its limits, a user of tenant1 spends `budget` tokens, tenant2 runs few at a time."""
        for words in (["tenant0", "--tokens-per-day", "1000000000000", "--money-per-month", "9000000"],
                      ["tenant1", "--user", "user0", "--tokens-per-day", str(budget)],
                      ["tenant2", "--concurrent-requests", "12", "--tokens-per-minute", "1000000000"]):
            self.command("quota", "set", "--config", self.path("w0.ini"), "--tenant", *words)
        self.limits = {(r[0], r[1]): int(r[2]) for r in
                       self.sql("SELECT tenant_id, scope, tokens_per_day FROM limits WHERE tokens_per_day IS NOT NULL")}
        self.limited = {r[0] for r in self.sql("SELECT tenant_id FROM limits")}

    def supervise(self):
        while not self.ended.wait(0.05):
            for p in self.processes:
                p.note_end()
                if not p.child and not p.down and time.monotonic() - p.died_at > RESTART_SECONDS:
                    p.start()

    def keep_journals(self):
        """A second name for every journal segment, so that what was accepted can be read after it is gone."""
        while not self.ended.wait(0.03):
            for gateway in self.dir.glob("gw?"):
                for segment in gateway.glob("journal/*.log"):
                    self.keep_journal(gateway.name, segment)

    def keep_journal(self, gateway, segment):
        """On the journal's own file system, where only a name is needed."""
        keep = self.dir / gateway / "journal" / "keep"
        keep.mkdir(exist_ok=True)
        try:
            os.link(segment, keep / str(segment.stat().st_ino))
        except OSError:
            pass  # kept already, or gone

    def crashes(self):
        """Processes that ended by one, and what sanitizers said of a binary that has them (its report ends with SUMMARY)."""
        found = [line.strip() for path in self.dir.glob("logs/*.log") for line in open(path, errors="replace")
                 if line.startswith("SUMMARY: ")]
        return found + [f"{p.name} ended with signal {-code}" for p in self.processes for code in p.exits
                        if -code in [int(s) for s in CRASHES]]

    def stop(self):
        for p in reversed(self.processes):
            p.stop(signal.SIGINT if p.name == "postgres" else signal.SIGTERM)
        self.ended.set()
        for t in (getattr(self, "supervisor", None), getattr(self, "keeper", None)):
            if t:
                t.join()
        if hasattr(self, "proxy"):
            self.proxy.close()
        for disk in self.small_disks:
            subprocess.run(["umount", disk], capture_output=True)


class RedisError(Exception):
    pass


def read_answer(f):
    line = f.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis went away")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RedisError(rest.decode())
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else f.read(int(rest) + 2)[:-2]
    return None if rest == b"-1" else [read_answer(f) for _ in range(int(rest))]
