"""A running installation for the integration tests.

TIERGATE_READY names the ready file of one that runs; otherwise one is started here (`tiergate up` in a directory of
its own, ports chosen by the kernel, the model of TIERGATE_TEST_MODEL) and stopped at the end.
"""
import http.client
import json
import os
import signal
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TIERGATE_BIN", ROOT / "build" / "tiergate")).resolve()
MODEL_FILE = os.environ.get("TIERGATE_TEST_MODEL", "")
START_SECONDS = 120


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
        options = {
            "api_key": self.key,
            "base_url": self.ready["base_url"],
            "max_retries": 0,
            "timeout": 60,
            "http_client": openai.DefaultHttpxClient(verify=self.tls),
        }
        return openai.OpenAI(**(options | more))

    def request(self, method, path, body=None, headers=None, key=True):
        """(status, headers in lower case, parsed JSON or bytes) of one request on its own connection."""
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=60)
        sent = {"Authorization": f"Bearer {self.key}"} if key else {}
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

    def works(self):
        status, _, body = self.post("/v1/chat/completions", self.chat())
        return status == 200 and body["choices"][0]["finish_reason"] in ("stop", "length")

    def command(self, *words):
        """What `tiergate WORDS --data ... --json` prints, parsed when it is JSON."""
        line = [BINARY, *words, "--data", self.ready["data_dir"], "--config",
                f"{self.ready['data_dir']}/run.ini", "--json"]
        text = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        return json.loads(text) if text[:1] in ("{", "[") else text


def start(directory):
    ready_file = Path(directory) / "ready.json"
    log = open(Path(directory) / "up.log", "wb")
    up = subprocess.Popen(
        [BINARY, "up", "--data", f"{directory}/data", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
         "--ops-listen", "127.0.0.1:0", "--set", "worker.ops_listen=127.0.0.1:0", "--model", f"small={MODEL_FILE}",
         "--ready-file", ready_file],
        stdout=log, stderr=log)
    deadline = time.monotonic() + START_SECONDS
    while not ready_file.exists():
        if up.poll() is not None or time.monotonic() > deadline:
            up.kill()
            pytest.exit("tiergate up does not start:\n" + (Path(directory) / "up.log").read_text(), returncode=1)
        time.sleep(0.1)
    return up, json.loads(ready_file.read_text())


@pytest.fixture(scope="session")
def gateway():
    given = os.environ.get("TIERGATE_READY")
    if given:
        yield Gateway(json.loads(Path(given).read_text()))
        return
    if not Path(MODEL_FILE).is_file():
        pytest.skip("TIERGATE_TEST_MODEL names no model file")
    with tempfile.TemporaryDirectory(prefix="tiergate-integration-") as directory:
        os.chmod(directory, 0o755)  # PostgreSQL runs as another account
        up, ready = start(directory)
        try:
            yield Gateway(ready)
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)


@pytest.fixture(scope="session")
def client(gateway):
    return gateway.client()


@pytest.fixture(scope="session")
def model(gateway):
    return gateway.model
