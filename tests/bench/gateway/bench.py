#!/usr/bin/env python3
"""The gateway's cost, in one alternating run: direct, nginx proxy_pass, Tiergate ungoverned and governed, Portkey's gateway.

All stand on this machine at once, idle until it is their turn, before upstreams that compute nothing: the mock (HTTP) and
the null worker (Tiergate's queue). Each turn gives a candidate some seconds of closed loop, for processor time per request,
and some of open loop at a modest rate, for latency; figures are medians over the alternations. Then streams over TLS.
PostgreSQL, Redis and the journal are real and on disk.

`make bench-gateway BENCH="--help"` lists the options.
"""
import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "faults"))
import model  # noqa: E402
import servers  # noqa: E402

BUILD = Path(os.environ.get("BENCH_BUILD", ROOT / "build"))
TOOLS = BUILD / "bench" / "gateway"
PORTKEY = ROOT / "build" / "bench" / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
MODEL = "bench"
TIER = "bench"
GAP_MS = 50  # 20 tokens a second
CONTEXT = 8192
ADDED_P99_US = 235  # the targets
CPU_RATIO = 3.0
STREAMS_CPU = 100.0
TICK = os.sysconf("SC_CLK_TCK")
LIMITS = {"--requests-per-minute": 10**9, "--tokens-per-minute": 10**12, "--concurrent-requests": 10**6,
          "--tokens-per-day": 10**13, "--tokens-per-month": 10**14, "--money-per-month": 10**6}


class Site(servers.Site):
    """One gateway and the null worker, with two keys: of a tenant without limits, and of one with every limit there is."""

    def __init__(self, directory, plain, binary, journal=None):
        super().__init__(directory, binary, gateways=0, workers=0, context=CONTEXT)
        self.port, self.ops = servers.free_port(), servers.free_port()
        self.plain, self.journal = plain, journal  # journal: a directory for it, elsewhere than on this disk

    def start(self):
        Path(self.path("model.gguf")).write_bytes(model.build(context=CONTEXT))
        self.write_secrets()
        self.make_postgres()
        self.make_redis()
        self.options |= {"gateway.plain_http": str(self.plain).lower(), "gateway.max_connections": 20000,
                         "gateway.request_ms": 600000}
        self.write_config("gw", self.path("s", "redis.sock"), self.path("s", "pg"), [self.port, self.ops])
        if self.journal:
            os.symlink(self.journal, self.path("gw", "journal"))
        self.add("gateway", [self.binary, "gateway", "--config", self.path("gw.ini")])
        self.add("worker", [str(TOOLS / "null_worker"), self.path("gw.ini"), TIER, str(GAP_MS)])
        for name in ("postgres", "redis"):
            self.by_name[name].start()
        self.wait("redis", lambda: self.redis_call("PING") == b"PONG")
        self.wait("postgres", self.make_database)
        self.command("migrate", "--config", self.path("gw.ini"))
        self.ungoverned, self.governed = self.make_key("free"), self.make_key("bound")
        self.sql(f"INSERT INTO assignments (tenant_id, name, model) SELECT id, '{MODEL}', '{MODEL}' FROM tenants")
        self.set_every_limit("bound")
        for name in ("gateway", "worker"):
            self.by_name[name].start()
        self.wait("gateway", lambda: self.is_ready("gateway"))

    def write_config(self, name, redis, postgres, ports):
        super().write_config(name, redis, postgres, ports)
        path = self.dir / f"{name}.ini"
        text = path.read_text().replace(f"[model {servers.MODEL}]", f"[model {MODEL}]").replace("tier = 7b", f"tier = {TIER}")
        path.write_text(text)

    def clock_env(self, name):
        return {}  # the true clock

    def make_database(self):
        argv = [servers.postgres_program("psql"), "-X", "-q", "-h", self.path("s", "pg"), "-U", "tiergate", "-d", "postgres", "-c",
                "CREATE DATABASE tiergate"]
        return subprocess.run(argv, capture_output=True).returncode == 0

    def ops_port(self, name):
        return self.ops

    def make_key(self, tenant):
        out = self.command("key", "create", "--config", self.path("gw.ini"), "--tenant", tenant, "--user", "bench",
                           "--create-missing", "--json")
        return json.loads(out)

    def set_every_limit(self, tenant):
        limits = [str(x) for pair in LIMITS.items() for x in pair]
        whose = [[], ["--user", "bench"], ["--key", self.governed["id"]], ["--model", MODEL]]
        for scope in whose:
            self.command("quota", "set", "--config", self.path("gw.ini"), "--tenant", tenant, *scope, *limits)

    def pid(self, name):
        return self.by_name[name].child.pid

    def rows(self):
        return int(self.sql("SELECT count(*) FROM usage")[0][0])

    def wait_rows(self, n):
        self.wait(f"row {n} of the ledger", lambda: self.rows() >= n, 60)
        time.sleep(0.1)
        return self.rows()


# ---- processes

def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_us(pid):
    """Processor time that a process, its children and those that it has waited for have used, in microseconds."""
    total = 0
    for one in [pid, *children(pid)]:
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended just now
        total += sum(int(fields[i]) for i in range(11, 15 if one == pid else 13))
    return total * 1000000 // TICK


def thread_us(pid):
    """Processor time by the names of its threads."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[name] = found.get(name, 0) + int((task / "schedstat").read_text().split()[0]) // 1000
    return found


def resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


class Program:
    """A child that ends with us."""

    def __init__(self, argv, log, cwd=None, env=None):
        with open(log, "ab") as out:
            self.child = subprocess.Popen(servers.bound([str(a) for a in argv]), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
                                          env=os.environ | (env or {}), start_new_session=True)
        self.pid = self.child.pid

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def start_mock(directory):
    port_file = directory / "mock.port"
    program = Program([TOOLS / "mock", port_file, GAP_MS], directory / "mock.log")
    while not port_file.exists() or not port_file.read_text().endswith("\n"):
        time.sleep(0.01)
    return program, int(port_file.read_text())


def start_nginx(directory, upstream, plain, tls_dir):
    """As Debian ships it (one access line a request), with the upstream's connections kept."""
    port = servers.free_port()
    home = directory / "nginx"
    home.mkdir()
    tls = "" if plain else f"ssl_certificate {tls_dir}/cert.pem; ssl_certificate_key {tls_dir}/key.pem;"
    (home / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 20000; }}
http {{
  access_log {home}/access.log;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  keepalive_requests 1000000000;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port}{"" if plain else " ssl"} backlog=4096;
    {tls}
    location / {{ proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
""")
    return Program(["/usr/sbin/nginx", "-p", home, "-c", home / "nginx.conf"], home / "log"), port


def start_portkey(directory):
    port = servers.free_port()
    return Program(["node", PORTKEY / "build" / "start-server.js", f"--port={port}", "--headless"], directory / "portkey.log",
                   env={"NODE_ENV": "production"}), port


# ---- the load

def load_line(port, **options):
    line = [str(TOOLS / "load"), "--port", str(port), "--model", MODEL]
    for name, value in options.items():
        if value is True:
            line.append(f"--{name}")
        elif value not in (None, False):
            for one in value if isinstance(value, list) else [value]:
                line += [f"--{name}", str(one)]
    return line


def run_load(port, key, **options):
    done = subprocess.run(load_line(port, **options), env=os.environ | {"TIERGATE_BENCH_KEY": key}, capture_output=True, text=True,
                          timeout=60 + options.get("seconds", 0))
    if done.returncode:
        sys.exit(f"load failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if told["errors"]:
        sys.exit(f"{told['errors']} answers were errors: {done.stderr[-1000:]}")
    return told


class Candidate:
    def __init__(self, name, port, pid=None, key="none", headers=(), tls=False, site=None):
        self.name, self.port, self.pid, self.key, self.headers, self.tls, self.site = name, port, pid, key, list(headers), tls, site
        self.asked = 0
        self.found = {}  # figure -> one value per alternation

    def note(self, figure, value):
        self.found.setdefault(figure, []).append(value)

    def median(self, figure):
        return statistics.median(self.found[figure]) if figure in self.found else None

    def load(self, **options):
        told = run_load(self.port, self.key, header=self.headers, tls=self.tls, **options)
        self.asked += told["answers"]
        return told

    def closed(self, connections, seconds):
        """Processor time per request, of the gateway and of what stands behind it."""
        parts = {"cpu": self.pid} if self.pid else {}
        if self.site:
            parts |= {"redis": self.site.pid("redis"), "postgres": self.site.pid("postgres")}
        before = {part: cpu_us(pid) for part, pid in parts.items()}
        told = self.load(connections=connections, seconds=seconds)
        if self.site:
            time.sleep(0.3)  # the last rows
        for part, pid in parts.items():
            self.note(part, (cpu_us(pid) - before[part]) / told["answers"])
        self.note("rate", told["answers"] / told["seconds"])

    def open(self, connections, seconds, rate):
        before = cpu_us(self.pid) if self.pid else 0
        told = self.load(connections=connections, seconds=seconds, rate=rate)
        if self.pid:
            self.note("cpu_open", (cpu_us(self.pid) - before) / told["answers"])
        self.note("p50", told["answer_p50_us"])
        self.note("p99", told["answer_p99_us"])


def fdatasync_us(directory, n=200):
    """(p50, p99) of this disk, for a line as long as the journal's."""
    path = directory / "probe"
    with open(path, "ab", buffering=0) as f:
        found = []
        for _ in range(n):
            f.write(b"x" * 600)
            begun = time.perf_counter()
            os.fdatasync(f.fileno())
            found.append((time.perf_counter() - begun) * 1e6)
            time.sleep(0.001)
    path.unlink()
    return statistics.median(found), sorted(found)[len(found) * 99 // 100]


# ---- the table

def show(candidates, nginx):
    direct = next(c for c in candidates if c.name == "direct")
    print(f"{'':22}{'req/s':>8}{'CPU us':>9}{'x nginx':>9}{'Redis us':>10}{'PG us':>8}{'CPU us @rate':>14}{'p50':>7}{'p99':>8}{'added p50':>11}{'added p99':>11}")
    for c in candidates:
        ratio = c.median("cpu") / nginx.median("cpu") if nginx and c.median("cpu") is not None else None
        cells = [(c.median("rate"), 8, 0), (c.median("cpu"), 9, 1), (ratio, 9, 1), (c.median("redis"), 10, 1), (c.median("postgres"), 8, 1),
                 (c.median("cpu_open"), 14, 0), (c.median("p50"), 7, 0), (c.median("p99"), 8, 0)]
        if c is not direct:
            cells += [(c.median(f"added_{p}"), 11, 0) for p in ("p50", "p99")]
        print(f"{c.name:22}" + "".join(f"{'':{w}}" if v is None else f"{v:{w},.{d}f}" for v, w, d in cells))


def judge(rows):
    """rows: (what, value, target). Prints each and the closing line."""
    below = 0
    for what, value, most in rows:
        ok = value <= most
        below += not ok
        print(f"{'ok   ' if ok else 'BELOW'} {what}: {value:,.1f}, target <= {most:,.0f}")
    print(f"below target: {below}")


def machine():
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    print(f"machine: {os.cpu_count()} x {cpu}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}")


def versions(has_portkey):
    def first(argv):
        done = subprocess.run(argv, capture_output=True, text=True)
        return (done.stdout + done.stderr).splitlines()[0]
    print("versions: tiergate", first(["git", "-C", ROOT, "describe", "--always", "--dirty"]), "|", first(["/usr/sbin/nginx", "-v"]) if shutil.which("nginx") else "no nginx", "|",
          first(["redis-server", "--version"]).split(" sha")[0], "|", first([servers.postgres_program("postgres"), "--version"]))
    if has_portkey:
        print("portkey:", json.loads((PORTKEY / "package.json").read_text())["version"], "on node", first(["node", "--version"]))


# ---- streams

def pinned(argv, core):
    return ["taskset", "-c", str(core), *argv] if core is not None and shutil.which("taskset") else argv


def pin(pid, core):
    """All its threads; threads that come later inherit it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def run_streams(c, n, seconds):
    """n streams at once. CPU of the gateway over the timed part, and what the clients saw."""
    argv = load_line(c.port, connections=n, stream=True, tokens=CONTEXT - 256, seconds=seconds, warmup=2, tls=c.tls)
    pid = c.pid
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        pin(pid, cores[0])
        argv = pinned(argv, cores[1])
    idle = resident_kib(pid)
    child = subprocess.Popen(argv, env=os.environ | {"TIERGATE_BENCH_KEY": c.key}, stdout=subprocess.PIPE, text=True)
    if child.stdout.readline() != "ready\n":
        sys.exit("the streams did not start")
    time.sleep(2)
    before, begun, said = cpu_us(pid), time.monotonic(), cpu_us(child.pid)
    time.sleep(seconds - 0.5)
    spent, took = cpu_us(pid) - before, time.monotonic() - begun
    clients = cpu_us(child.pid) - said
    resident = resident_kib(pid)
    told = json.loads(child.stdout.read())
    child.wait()
    return {"n": n, "cpu": spent / took / 1e4, "client_cpu": clients / took / 1e4, "us_token": spent / took / (n * 1000 / GAP_MS), "kib": (resident - idle) / n} | told


def show_streams(told):
    print(f"{told['n']:,} TLS streams at {1000 // GAP_MS} tokens/s: gateway {told['cpu']:.0f}% of one core ({told['us_token']:.2f} us a token), "
          f"{told['kib']:.1f} KiB each; from frame to event p50 {told['token_p50_us']:,} us, p99 {told['token_p99_us']:,} us "
          f"(clients {told['client_cpu']:.0f}% of theirs)")


# ---- the whole

def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--alternations", type=int, default=5)
    p.add_argument("--seconds", type=float, default=3)
    p.add_argument("--rate", type=float, default=300)
    p.add_argument("--connections", type=int, default=64)
    p.add_argument("--streams", type=int, default=4000)
    p.add_argument("--stream-seconds", type=float, default=10)
    p.add_argument("--tls", action="store_true", help="TLS before nginx and Tiergate")
    p.add_argument("--only", default="", help="candidates, comma-separated; none: all")
    p.add_argument("--smoke", action="store_true")
    p.add_argument("--beside", default="", help="another build's tiergate, to alternate with")
    p.add_argument("--hold", type=float, default=0, help="seconds of closed loop through the governed gateway alone, for a profiler; its process is named")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--memory-journal", action="store_true", help="the journal in memory: how much of the latency is the disk's")
    return p.parse_args()


def smoke(site, candidates):
    """Every answer is there and right, every request has its row, every stream its tokens."""
    asked = 0
    for c in candidates:
        told = c.load(connections=16, requests=200)
        assert told["answers"] == 200 and told["tokens"] == 200, (c.name, told)
        told = c.load(connections=16, rate=500, requests=100)
        assert told["answers"] == 100, (c.name, told)
        asked += 300 if c.site else 0
    streams = run_streams(candidates[-1], 50, 1)
    assert streams["tokens"] >= 50 * 15 and streams["token_p50_us"] > 0, streams
    asked_in_all = asked + streams["asked"]
    assert site.wait_rows(asked_in_all) == asked_in_all
    kept = int(site.sql("SELECT count(*) FROM usage WHERE completion_tokens > 0 AND outcome = 'ok'")[0][0])
    assert asked <= kept <= asked_in_all, (kept, asked)
    print(f"bench-gateway: {asked} answers and 50 streams, each with its row")
    print("1 passed, 0 failed")


def measure(o, site, candidates, directory):
    direct = candidates[0]
    nginx = next((c for c in candidates if c.name.startswith("nginx")), None)
    disk = []
    for i in range(o.alternations):
        disk.append(fdatasync_us(directory))
        for c in candidates:
            c.closed(o.connections, o.seconds)
            c.open(o.connections, o.seconds, o.rate)
            for p in ("p50", "p99"):
                c.note(f"added_{p}", c.found[p][-1] - direct.found[p][-1])
        print(f"alternation {i + 1} of {o.alternations}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"closed loop: {o.connections} connections, {o.seconds:g} s a turn; open loop: {o.rate:g} requests/s; medians of {o.alternations} alternations; "
          f"{'TLS before nginx and Tiergate' if o.tls else 'plain HTTP in front'}; journal {'in memory' if o.memory_journal else 'on disk'}")
    print(f"fdatasync of this disk in the same minutes: p50 {statistics.median(d[0] for d in disk):,.0f} us, p99 {statistics.median(d[1] for d in disk):,.0f} us")
    show(candidates, nginx)
    targets = []
    for c in candidates:
        if c.name == "tiergate governed":
            targets.append(("governed, added p99 us", c.median("added_p99"), ADDED_P99_US))
            if nginx:
                targets.append(("governed, CPU as a multiple of nginx proxy_pass", c.median("cpu") / nginx.median("cpu"), CPU_RATIO))
    return targets


def main():
    o = parse()
    missing = servers.missing_programs()
    if missing:
        print(f"skip: {', '.join(missing)} not installed")
        return
    base = BUILD / "bench"
    directory = Path(tempfile.mkdtemp(prefix="site-", dir=base))
    os.chmod(directory, 0o755)
    programs, sites = [], []
    memory = tempfile.mkdtemp(prefix="journal-", dir="/dev/shm") if o.memory_journal else None
    try:
        for i, binary in enumerate([BUILD / "tiergate", *filter(None, [o.beside])]):
            sites.append(Site(directory / f"site{i}", not o.tls, binary, memory and tempfile.mkdtemp(dir=memory)))
            sites[-1].start()
        run(o, sites, directory, programs)
    finally:
        for p in reversed(sites + programs):
            p.stop()
        if memory:
            shutil.rmtree(memory, ignore_errors=True)
        if not o.keep:
            shutil.rmtree(directory, ignore_errors=True)


def measure_streams(o, directory):
    """On an installation of its own, with TLS."""
    site = Site(directory / "streams", False, BUILD / "tiergate")
    try:
        site.start()
        c = next(c for c in governed_and_not(site, True) if c.name.endswith("ungoverned"))
        told = run_streams(c, o.streams, o.stream_seconds)
        show_streams(told)
        print(f"ledger: {told['asked']:,} streams, {site.wait_rows(told['asked']):,} rows")
    finally:
        site.stop()
    return [(f"{o.streams:,} streams, % of one core", told["cpu"], STREAMS_CPU)]


def governed_and_not(site, tls, mark=""):
    return [Candidate(f"tiergate {name}{mark}", site.port, site.pid("gateway"), key=key["key"], tls=tls, site=site)
            for name, key in (("ungoverned", site.ungoverned), ("governed", site.governed))]


def run(o, sites, directory, programs):
    site = sites[0]
    mock, mock_port = start_mock(directory)
    programs.append(mock)
    candidates = [Candidate("direct", mock_port)]
    if shutil.which("nginx"):
        program, port = start_nginx(directory, mock_port, not o.tls, site.path("gw", "tls"))
        programs.append(program)
        candidates.append(Candidate("nginx proxy_pass", port, program.pid, tls=o.tls))
    candidates += governed_and_not(site, o.tls)
    if o.beside:
        candidates += governed_and_not(sites[1], o.tls, " (beside)")
    if PORTKEY.exists() and not o.smoke:
        program, port = start_portkey(directory)
        programs.append(program)
        candidates.append(Candidate("portkey", port, program.pid,
                                    headers=["x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{mock_port}/v1"]))
        time.sleep(2)
    if o.only:
        candidates = [c for c in candidates if c.name == "direct" or any(word in c.name for word in o.only.split(","))]
    if o.smoke:
        smoke(site, candidates)
        return
    if o.hold:
        print(f"gateway {site.pid('gateway')}", flush=True)
        c = next(c for c in candidates if c.name == "tiergate governed")
        before = thread_us(c.pid)
        c.closed(o.connections, o.hold)
        n = c.asked
        print({name: round((us - before.get(name, 0)) / n, 1) for name, us in thread_us(c.pid).items()})
        print({figure: c.median(figure) for figure in c.found})
        return
    machine()
    versions(PORTKEY.exists())
    targets = measure(o, site, candidates, directory)
    asked = sum(c.asked for c in candidates if c.site is site)
    print(f"ledger: {asked:,} requests, {site.wait_rows(asked):,} rows")
    if o.streams:
        targets += measure_streams(o, directory)
    judge(targets)


if __name__ == "__main__":
    main()
