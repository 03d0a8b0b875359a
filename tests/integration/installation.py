"""Installations for the tests: `tiergate up` in a directory of its own, and the plainest ways to talk to it."""
import http.client
import json
import os
import signal
import ssl
import struct
import subprocess
import urllib.request
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TIERGATE_BIN", ROOT / "build" / "tiergate")).resolve()
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiergate"
MODEL_FILE = os.environ.get("TIERGATE_TEST_MODEL") or str(CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf")
START_SECONDS = 120
STOP_SECONDS = 60


def whole_lines(path):
    """Of a log that somebody writes: its last line may stand there in part."""
    return Path(path).read_text(errors="replace").rpartition("\n")[0].splitlines()


def wait_for(what, seconds=30, why="waited in vain"):
    """The first truthy value of what(), asked again and again; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.05)
    pytest.fail(why() if callable(why) else why)


def metric(url, name):
    """The value of one metric, named as it is printed (labels too), of the process with this operations URL."""
    for line in urllib.request.urlopen(url + "/metrics", timeout=10).read().decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    raise ValueError(f"no metric {name}")


class Stream:
    """A streamed answer, read event by event: dicts, then "[DONE]"."""

    def __init__(self, connection, answer):
        self.connection, self.answer = connection, answer
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.id = self.headers["x-request-id"]
        self.events = []

    def __iter__(self):
        while (line := self.answer.readline()):
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip().decode()
            event = data if data == "[DONE]" else json.loads(data)
            self.events.append(event)
            yield event

    def read(self, n):
        """The next n events."""
        events = iter(self)
        return [next(events) for _ in range(n)]

    def rest(self):
        return list(self)

    def tokens(self):
        """Tokens received so far, by their log-probabilities (the request asks for them)."""
        choices = (c for e in self.events if isinstance(e, dict) for c in e.get("choices", []))
        return sum(len((c.get("logprobs") or {}).get("content") or []) for c in choices)

    def text(self):
        choices = (c for e in self.events if isinstance(e, dict) for c in e.get("choices", []))
        return "".join(c["delta"].get("content") or "" for c in choices)

    def close(self):
        self.answer.close()
        self.connection.close()


class Gateway:
    """What the ready file says, and the plainest way to send a request."""

    def __init__(self, ready):
        self.ready = ready
        self.key = ready["api_key"]
        self.model = ready["models"][0]
        url = urlsplit(ready["base_url"])
        self.host, self.port = url.hostname, url.port
        self.tls = ssl.create_default_context(cafile=ready["ca_file"])

    def client(self, **more):
        import openai
        options = {
            "api_key": self.key,
            "base_url": self.ready["base_url"],
            "max_retries": 0,
            "timeout": 60,
            "http_client": openai.DefaultHttpxClient(verify=self.tls),
        }
        return openai.OpenAI(**(options | more))

    def connect(self, timeout=60):
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=timeout)

    def request(self, method, path, body=None, headers=None, key=True):
        """(status, headers in lower case, parsed JSON or bytes) of one request on its own connection."""
        connection = self.connect()
        sent = {"Authorization": f"Bearer {self.key if key is True else key}"} if key else {}
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        try:
            connection.request(method, path, body=body, headers=sent | (headers or {}))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        is_json = fields.get("content-type", "").startswith("application/json")
        return answer.status, fields, json.loads(data) if is_json and data else data

    def post(self, path, body, **more):
        return self.request("POST", path, body, **more)

    def chat(self, **more):
        return {"model": self.model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]} | more

    def stream(self, key=None, headers=None, **more):
        """A streamed chat that tells every token (log-probabilities) and does not end by itself."""
        connection = self.connect()
        body = self.chat(stream=True, logprobs=True, ignore_eos=True, temperature=0, **more)
        connection.request("POST", "/v1/chat/completions", json.dumps(body),
                           {"Authorization": f"Bearer {key or self.key}"} | (headers or {}))
        answer = connection.getresponse()
        if answer.status != 200:
            pytest.fail(f"{answer.status}: {answer.read()}")
        return Stream(connection, answer)

    def works(self):
        status, _, body = self.post("/v1/chat/completions", self.chat())
        return status == 200 and body["choices"][0]["finish_reason"] in ("stop", "length")

    def command(self, *words):
        """What `tiergate WORDS --data ... --json` prints, parsed when it is JSON."""
        line = [BINARY, *words, "--config", f"{self.ready['data_dir']}/run.ini", "--json"]
        text = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        return json.loads(text) if text[:1] in ("{", "[") else text

    def rows(self):
        """The ledger, the newest first."""
        return self.command("usage", "--requests", "--limit", "100000")

    def tenant(self):
        """The id of tenant local."""
        return self.redis("SMEMBERS", "tg:tenants").decode()

    def redis(self, *words):
        """One command to its private Redis: what redis-cli prints, without the last line end."""
        line = ["redis-cli", "-s", f"{self.ready['data_dir']}/run/redis.sock", *words]
        return subprocess.run(line, check=True, capture_output=True).stdout.removesuffix(b"\n")

    def held(self):
        """scope -> what open requests hold there: requests, tokens, money; of the scopes that have a limit."""
        prefix = f"tg:{{{self.tenant()}}}:s:"
        keys = self.redis("KEYS", prefix + "*").decode().split()
        return {key.removeprefix(prefix): struct.unpack("<11d", self.redis("GET", key))[8:] for key in keys}

    def row(self, request_id, seconds=10):
        """The one row of a request, once it is there."""
        def find():
            rows = [r for r in self.rows() if r["request_id"] == request_id]
            assert len(rows) <= 1
            return rows
        return wait_for(find, seconds, f"no row of {request_id}")[0]


class Installation:
    """A `tiergate up` of a directory. Its processes are known by their working directory, arguments or environment."""

    def __init__(self, directory, *options, data=None, model=MODEL_FILE, name="small", listen="127.0.0.1:0"):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = Path(data or self.directory / "data")
        self.ready_file = self.directory / "ready.json"
        self.log = self.directory / "up.log"
        self.mark = f"INSTALLATION_MARK={self.directory}"
        self.line = [BINARY, "up", "--data", self.data, "--listen", listen, "--admin-listen", "127.0.0.1:0",
                     "--ready-file", self.ready_file, "--model", f"{name}={model}", *options]
        self.up = None

    # ---- starting and stopping

    def begin(self):
        """Starts without waiting."""
        name, value = self.mark.split("=", 1)
        with open(self.log, "ab") as log:
            self.up = subprocess.Popen(self.line, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=os.environ | {name: value})
        return self

    def start(self):
        self.begin()
        deadline = time.monotonic() + START_SECONDS
        while not self.ready_file.exists():
            if self.up.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail("tiergate up does not start:\n" + self.said())
            time.sleep(0.05)
        return self

    def wait_failure(self, seconds=30):
        """It is going to end by itself: its exit status and what it said."""
        try:
            return self.up.wait(seconds), self.said()
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("tiergate up did not end:\n" + self.said())

    def stop(self, signum=signal.SIGINT):
        """Ctrl-C; returns the exit status. Nothing may be left."""
        self.up.send_signal(signum)
        try:
            status = self.up.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("tiergate up did not stop:\n" + self.said())
        assert self.processes() == {}, self.said()
        return status

    def kill(self):
        """Whatever is left; for the end of a test."""
        if self.up and self.up.poll() is None:
            self.up.kill()
            self.up.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def said(self):
        return self.log.read_text(errors="replace") + self.tails()

    def tails(self):
        logs = sorted((self.data / "logs").glob("*.log")) if (self.data / "logs").is_dir() else []
        return "".join(f"\n--- {log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    # ---- looking

    def ready(self):
        return json.loads(self.ready_file.read_text())

    def gateway(self):
        return Gateway(self.ready())

    @property
    def gateway_log(self):
        return self.data / "logs" / "gateway.log"

    @property
    def worker_log(self):
        return next((self.data / "logs").glob("worker-*.log"))

    def metric(self, kind, name):
        """Of the gateway or the worker."""
        ready = self.ready()
        return metric((ready if kind == "gateway" else ready["workers"][0])["ops_url"], name)

    def pids(self, kind):
        found = self.ready()["pids"][kind]
        return found if isinstance(found, list) else [found]

    def processes(self):
        """pid -> command line of everything alive that belongs here."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                where = os.readlink(entry / "cwd")
                marked = self.mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue  # it ended meanwhile, or is not ours to look at
            if state != "Z" and (marked or Path(where).is_relative_to(self.data)):
                found[int(entry.name)] = line
        return found

    def wait_new_pid(self, kind, old, seconds=40):
        """After a death: until the ready file names another process, and a request works."""
        wait_for(lambda: self.pids(kind) != [old], seconds,
                 lambda: f"no new {kind}:\n{self.said()}")
        wait_for(lambda: self.gateway().works(), seconds, lambda: f"no answer after the new {kind}:\n{self.said()}")
