"""The ledger against what clients received: in the good case, and when whatever may die dies."""
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from installation import BINARY, Installation, wait_for

CHAT = "/v1/chat/completions"
LONG = 300  # tokens of a stream that something happens to and that is read to its end
POISON = 333  # tokens of a prompt that kills its worker
ENDLESS = 6000  # of one that is not: no machine makes them while the test acts; fits the model's context


@pytest.fixture(scope="module")
def home(model_file, tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("ledger"), "--set", "gateway.resume_ms=6000")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TIERGATE_FAILPOINTS", f"worker.prompt.{POISON}=kill")
        installation.start()
    yield installation
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


@pytest.fixture
def gateway(home):
    """As it is now: ids and ports of the last start."""
    gateway = home.gateway()
    wait_for(gateway.works, 30, home.said)
    return gateway


def equal(row, usage):
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


def make_key(gateway, user="ann"):
    return gateway.command("key", "create", "--tenant", "local", "--user", user, "--create-missing")


def send(pids, signum):
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass  # a backend that ended meanwhile


@contextmanager
def stopped(*pids):
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


def drain(stream, gateway):
    """What is under way reaches the client, the worker being stopped: reads until nothing comes for a second."""
    stream.connection.sock.settimeout(1)
    try:
        for _ in stream:
            pass
    except (TimeoutError, OSError):
        pass


# ---- the good case


@pytest.mark.parametrize("more", [
    {"max_tokens": 7},
    {"max_tokens": 9, "n": 2, "seed": 3},
    {"max_tokens": 40, "stop": [" the", "\n"], "seed": 5},
    {"max_tokens": 12, "logprobs": True, "top_logprobs": 2},
    {},  # until it ends by itself, or 512
], ids=["short", "two choices", "stop", "logprobs", "no limit"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_row_equals_the_usage_that_was_told(gateway, streamed, more):
    body = {"model": gateway.model, "messages": [{"role": "user", "content": "Name a river, in one word."}]} | more
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    status, headers, answer = gateway.post(CHAT, body)
    assert status == 200
    if streamed:
        events = [line[6:] for line in answer.decode().splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        usage = json.loads(events[-2])["usage"]
    else:
        usage = answer["usage"]
    row = gateway.row(headers["x-request-id"])
    equal(row, usage)
    assert row["outcome"] == "ok" and row["attempts"] == 1 and row["endpoint"] == "chat"
    assert 0 < usage["completion_tokens"] <= more.get("max_tokens", 512) * more.get("n", 1)
    assert 0 <= row["first_token_ms"] <= row["total_ms"] and row["engine_us"] > 0


def test_a_row_counts_each_token_that_was_streamed(gateway):
    stream = gateway.stream(max_tokens=50)
    assert stream.rest()[-1] == "[DONE]"
    assert stream.tokens() == 50
    assert gateway.row(stream.id)["completion_tokens"] == 50


def test_a_completion_with_echo_counts_the_prompt_once(gateway):
    body = {"model": gateway.model, "prompt": "Once upon a time", "max_tokens": 5, "echo": True, "logprobs": 1}
    status, headers, answer = gateway.post("/v1/completions", body)
    assert status == 200
    equal(gateway.row(headers["x-request-id"]), answer["usage"])
    assert answer["usage"]["completion_tokens"] <= 5


def test_a_refused_request_leaves_no_row(gateway):
    def settled():
        return gateway.row(gateway.post(CHAT, gateway.chat())[1]["x-request-id"]) and len(gateway.rows())

    before = settled()
    for body in ({"model": "nosuch"}, gateway.chat(n=0), gateway.chat(max_tokens=10**6)):
        assert gateway.post(CHAT, gateway.chat() | body)[0] in (400, 404)
    assert settled() == before + 1


# ---- clients that go


def test_a_client_that_goes_pays_what_it_received(home, gateway):
    stream = gateway.stream(max_tokens=ENDLESS)
    stream.read(5)
    with stopped(*home.pids("worker")):
        drain(stream, gateway)
        received = stream.tokens()
        stream.close()
        row = gateway.row(stream.id)
    assert 4 <= received < ENDLESS
    assert row["completion_tokens"] == received
    assert row["outcome"] == "client_gone"


def test_a_client_that_goes_stops_the_worker(gateway):
    stream = gateway.stream(max_tokens=ENDLESS)
    stream.read(3)
    stream.close()
    row = gateway.row(stream.id)
    assert row["completion_tokens"] < ENDLESS
    assert gateway.works()


# ---- a worker that dies


def test_a_worker_killed_mid_stream_is_continued_by_the_next(home, gateway):
    whole = gateway.stream(max_tokens=LONG)
    whole.rest()
    stream = gateway.stream(max_tokens=LONG)
    stream.read(10)
    os.kill(home.pids("worker")[0], signal.SIGKILL)
    assert stream.rest()[-1] == "[DONE]"
    assert stream.tokens() == LONG and stream.text() == whole.text()
    row = gateway.row(stream.id)
    assert row["completion_tokens"] == LONG and row["attempts"] == 2 and row["outcome"] == "ok"


def test_a_worker_that_stays_dead_ends_the_stream_with_an_error_event(home, gateway):
    worker = home.pids("worker")[0]
    stream = gateway.stream(max_tokens=ENDLESS)
    stream.read(10)
    with stopped(home.up.pid):  # nobody starts another
        os.kill(worker, signal.SIGKILL)
        last = stream.rest()[-1]
        assert last["error"]["code"] and stream.events.count("[DONE]") == 0
        row = gateway.row(stream.id)
    assert row["completion_tokens"] == stream.tokens() >= 9
    assert row["outcome"] == "worker_lost"
    home.wait_new_pid("worker", worker)


def test_why_tells_of_a_request_that_killed_its_workers(gateway):
    prompt = " river" * POISON
    assert gateway.post("/v1/tokenize", {"model": gateway.model, "prompt": prompt})[2]["count"] == POISON
    status, headers, body = gateway.post("/v1/completions", {"model": gateway.model, "prompt": prompt, "max_tokens": 3})
    assert (status, body["error"]["code"]) == (500, "poison_request")
    request_id = headers["x-request-id"]
    row, why = gateway.row(request_id), gateway.command("why", request_id)
    assert row["outcome"] == why["outcome"] == "dead_letter" and why["state"] == "recorded"
    assert (why["attempts"], why["prompt_tokens"], why["completion_tokens"], why["steps"], why["money"]) == (3, 0, 0, 0, 0)
    assert why["first_token_ms"] is None and why["held_tokens"] == POISON + 3
    line = [BINARY, "why", request_id, "--config", f"{gateway.ready['data_dir']}/run.ini"]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert f"{request_id}: dead_letter\n" in said and "ms after acceptance: dead_letter\n" in said
    assert "attempts     3, " in said and "none was made" in said


# ---- a gateway that dies


def test_a_gateway_killed_mid_stream_leaves_exactly_one_row(home, gateway):
    stream = gateway.stream(max_tokens=ENDLESS)
    stream.read(10)
    time.sleep(1.2)  # one report to Redis at least
    known = stream.tokens()
    old = home.pids("gateway")[0]
    os.kill(old, signal.SIGKILL)
    try:
        stream.rest()
    except OSError:
        pass
    assert "[DONE]" not in stream.events
    home.wait_new_pid("gateway", old)
    row = home.gateway().row(stream.id, 40)
    assert known <= row["completion_tokens"] <= stream.tokens()
    assert row["outcome"] != "ok"
    time.sleep(6)  # a sweep later there is still one
    assert len([r for r in home.gateway().rows() if r["request_id"] == stream.id]) == 1


# ---- keys


def test_a_revoked_key_ends_its_stream_and_starts_nothing(gateway):
    made = make_key(gateway)
    stream = gateway.stream(key=made["key"], max_tokens=1500)
    other = gateway.stream(max_tokens=60)
    stream.read(5)
    gateway.command("key", "revoke", made["public_id"])
    last = stream.rest()[-1]
    assert stream.tokens() < 1500
    assert isinstance(last, dict) and last["error"]["code"] == "invalid_api_key"
    assert gateway.request("GET", "/v1/models", key=made["key"])[0] == 401
    assert other.rest()[-1] == "[DONE]"  # nobody else's ends
    row = gateway.row(stream.id)
    assert row["completion_tokens"] == stream.tokens() and row["outcome"] == "revoked"


# ---- a database that is away


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_database_that_is_away_costs_no_row_and_no_known_key(home, gateway, how):
    unknown = make_key(gateway, "bob")["key"]
    wait_for(gateway.works)  # its key is known
    before = len(gateway.rows())
    told = []

    def ask():
        status, headers, answer = gateway.post(CHAT, gateway.chat(max_tokens=6))
        told.append((status, headers["x-request-id"], answer))

    servers = [pid for pid, line in home.processes().items() if "postgres" in line and "tiergate up" not in line]
    postmaster = home.pids("postgres")[0]
    with stopped(home.up.pid):  # nobody starts it again meanwhile
        if how == "dies":
            os.kill(postmaster, signal.SIGKILL)
        with stopped(*(servers if how == "hangs" else [])):
            begun = time.monotonic()
            ask()
            status, headers, body = gateway.request("GET", "/v1/models", key=unknown)
            assert status == 503 and body["error"]["code"] == "dependency_unavailable", body
            assert "retry-after-ms" in headers or "retry-after" in headers
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(max(0, 5 - (time.monotonic() - begun)))
    if how == "dies":
        wait_for(lambda: home.pids("postgres")[0] != postmaster, 40, home.said)
    assert [status for status, _, _ in told] == [200] * 5
    for _, request_id, answer in told:
        equal(gateway.row(request_id, 30), answer["usage"])
    assert wait_for(lambda: gateway.request("GET", "/v1/models", key=unknown)[0] == 200, 10)
    rows = [r["request_id"] for r in gateway.rows()]
    assert len(rows) == len(set(rows)) >= before + 5


# ---- after all of that


def test_the_ledger_adds_up_after_all_of_that(gateway, home):
    done = subprocess.run([BINARY, "usage", "verify", "--data", home.data], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
