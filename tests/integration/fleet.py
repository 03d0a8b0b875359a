"""Several gateways and workers on one Redis and one PostgreSQL, as real processes: the site of tests/faults, for pytest.

The model is that site's tiny one (random weights, every token one printable character), so hundreds of clients at once
are a matter of seconds. Everything listens on loopback and ends with the fixture.
"""
import http.client
import itertools
import json
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

from installation import BINARY, ROOT, wait_for, whole_lines

sys.path.append(str(ROOT / "tests" / "faults"))
from servers import MODEL, Site, missing_programs  # noqa: E402  (the path is set above)

PROXY = ROOT / "build" / "tests" / "chaos_proxy"
CHAT = "/v1/chat/completions"
PLENTY = 10**12
TLS = ssl.create_default_context()
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE  # each gateway made a CA of its own


class Client:
    """One kept connection to one gateway."""

    def __init__(self, port, key, timeout=60):
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, context=TLS, timeout=timeout)
        self.key = key

    def begin(self, body, headers=None):
        self.connection.request("POST", CHAT, json.dumps({"model": MODEL} | body),
                                {"Authorization": f"Bearer {self.key}"} | (headers or {}))
        return self.connection.getresponse()

    def ask(self, body, headers=None):
        """(status, headers in lower case, parsed body)"""
        answer = self.begin(body, headers)
        data = answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(data) if data else None

    def stream(self, tokens, n=1):
        """The lines of a stream that makes so many tokens per choice; it has begun."""
        answer = self.begin({"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "n": n, "stream": True,
                             "temperature": 0, "ignore_eos": True})
        assert answer.status == 200
        lines = (line.decode().rstrip() for line in answer)
        return answer.getheader("x-request-id"), itertools.chain([next(lines)], lines)

    def close(self):
        self.connection.close()


@contextmanager
def running(**more):
    """A fleet that serves; at the end its ledger must add up. A directory of its own: PostgreSQL's user cannot enter pytest's."""
    if missing_programs() or not PROXY.is_file():
        pytest.skip(f"lacks {missing_programs() or PROXY}")
    directory = tempfile.mkdtemp(prefix="tiergate-fleet-")
    fleet = Fleet(directory, **more)
    try:
        yield fleet.start()
        wait_for(fleet.adds_up, 30, fleet.verify)
    finally:
        fleet.stop()
        shutil.rmtree(directory, ignore_errors=True)


class Fleet(Site):
    def __init__(self, directory, **more):
        super().__init__(directory, BINARY, **more)
        self.command_config = ("--config", self.path("w0.ini"))

    def start(self):
        super().start(str(PROXY), PLENTY, tenants=3, keys_each=1)
        return self

    def make_key(self, user, tenant="tenant0"):
        out = self.command("key", "create", *self.command_config, "--tenant", tenant, "--user", user, "--create-missing",
                           "--json")
        return json.loads(out)["key"]

    def limit(self, user, tenant="tenant0", **kinds):
        words = [w for kind, value in kinds.items() for w in ("--" + kind.replace("_", "-"), str(value))]
        self.command("quota", "set", *self.command_config, "--tenant", tenant, "--user", user, *words)

    def metric(self, name, series):
        """The value of a series at a role's /metrics."""
        with urlopen(f"http://127.0.0.1:{self.ops_port(name)}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(series + " ")), None)

    def configure(self, name, **values):
        """Live keys of [gateway] in one role's file; SIGHUP makes them so."""
        path = self.dir / f"{name}.ini"
        lines = path.read_text().splitlines()
        for key, value in values.items():
            lines = [line for line in lines if not line.startswith(f"{key} =")]
            lines.insert(lines.index("[gateway]") + 1, f"{key} = {value}")
        path.write_text("\n".join(lines) + "\n")
        self.by_name[name].send(signal.SIGHUP)

    def logged(self, name, event):
        """Lines of a role's log that tell this event."""
        lines = whole_lines(self.dir / "logs" / f"{name}.log")
        return [json.loads(line) for line in lines if f'"{event}"' in line]

    def events(self):
        """What the gateways' logs tell of trouble, for a failed test."""
        return "".join(f"\n{name} {line}" for name in ("gw0", "gw1") for line in
                       (self.dir / "logs" / f"{name}.log").read_text().splitlines()
                       if '"request.end"' not in line and '"http.access"' not in line or '"failed"' in line or "_lost" in line)

    def client(self, gateway, key):
        return Client(self.gateway_ports()[gateway % self.n_gateways], key)

    def rows(self, user):
        """(id, prompt, completion, outcome) of a user's requests"""
        return [(i, int(p), int(c), o) for i, p, c, o in self.sql(
            "SELECT request_id, prompt_tokens, completion_tokens, outcome FROM usage u JOIN users w ON w.id = u.user_id "
            f"WHERE w.name = '{user}'")]

    def verify(self):
        """What `usage verify` says."""
        return subprocess.run([self.binary, "usage", "verify", *self.command_config], capture_output=True, text=True).stdout

    def adds_up(self):
        return " 0 differences" in self.verify()
