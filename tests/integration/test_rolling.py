"""How gateways and workers end: without harm to any client when there are others, and tidily when their time is over."""
import json
import signal
import threading
import time
from itertools import count

import pytest

from balancer import Balancer
from fleet import MODEL, TLS, running
from installation import wait_for

CLIENTS = 6
LONG = 2500  # tokens of a stream that outlasts a worker's drain


@pytest.fixture(scope="module")
def fleet():
    with running(gateways=2, workers=2, context=4096, options={
            "gateway.drain_grace_ms": 1000, "worker.drain_ms": 100, "worker.kv_bytes": "64MiB",
            "gateway.stream_buffer_bytes": "16MiB"}) as fleet:  # the tiny model outruns a client on a busy machine
        yield fleet


class Load:
    """Clients of openai-python that do not repeat anything, behind the balancer, each on a kept connection."""

    def __init__(self, port, key):
        import openai
        self.failures, self.done, self.ended = [], count(), threading.Event()
        self.n_done = 0
        self.threads = [threading.Thread(target=self.run, args=(i, openai.OpenAI(
            api_key=key, base_url=f"https://127.0.0.1:{port}/v1", max_retries=0, timeout=60,
            http_client=openai.DefaultHttpxClient(verify=TLS)))) for i in range(CLIENTS)]
        for t in self.threads:
            t.start()

    def run(self, i, client):
        while not self.ended.is_set():
            try:
                (self.stream if i % 2 else self.ask)(client, LONG if i == 1 else 40)
                self.n_done = next(self.done) + 1
            except Exception as e:  # told by the test
                self.failures.append(f"{e!r} {getattr(e, 'body', '')}")
                time.sleep(0.1)

    def body(self, tokens):
        return {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "temperature": 0,
                "extra_body": {"ignore_eos": True}}

    def ask(self, client, tokens):
        answer = client.chat.completions.create(**self.body(tokens))
        assert answer.usage.completion_tokens == tokens

    def stream(self, client, tokens):
        chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **self.body(tokens)))
        assert chunks[-1].usage.completion_tokens == tokens

    def stop(self):
        self.ended.set()
        for t in self.threads:
            t.join()


def restart(fleet, name, load):
    """SIGTERM; it ends by itself, is started again by the fleet's supervisor, and gets requests again."""
    process = fleet.by_name[name]
    before = len(process.exits)
    process.send(signal.SIGTERM)
    wait_for(lambda: len(process.exits) > before, 30, f"{name} does not end")
    assert process.exits[-1] == 0
    wait_for(lambda: fleet.is_ready(name), 30, f"{name} does not come back")
    done = load.n_done
    wait_for(lambda: load.n_done > done + 2 * CLIENTS, 30, "nothing is answered any more")


def test_a_rolling_restart_of_gateways_and_workers_fails_no_request(fleet):
    pytest.importorskip("openai")
    user = "rolling"
    key = fleet.make_key(user)
    balancer = Balancer(list(zip(fleet.gateway_ports(), (fleet.ops_port("gw0"), fleet.ops_port("gw1"))))).start()
    wait_for(lambda: len(balancer.ready) == 2)
    load = Load(balancer.port, key)
    try:
        wait_for(lambda: load.n_done > 2 * CLIENTS, 30, lambda: str(load.failures))
        for name in ("gw0", "gw1", "w0", "w1", "w0", "gw0"):
            restart(fleet, name, load)
    finally:
        load.stop()
        balancer.stop()
    assert load.failures == [], fleet.events()
    wait_for(lambda: len(fleet.rows(user)) >= load.n_done, 20, "rows are missing")
    rows = fleet.rows(user)
    assert len(rows) == load.n_done and {outcome for *_, outcome in rows} == {"ok"}
    assert {completion for _, _, completion, _ in rows} == {40, LONG}


def test_what_runs_when_a_workers_time_is_over_goes_on_at_another(fleet):
    """The stream is at one of them, so one of the two restarts hands it back."""
    client = fleet.client(0, fleet.make_key("handed"))
    whole = [line for line in client.stream(3900, n=4)[1] if line.startswith("data: {")]
    request_id, lines = client.stream(3900, n=4)
    for name in ("w0", "w1"):
        before = len(fleet.by_name[name].exits)
        fleet.by_name[name].send(signal.SIGTERM)
        wait_for(lambda: len(fleet.by_name[name].exits) > before, 30, f"{name} does not end")
        wait_for(lambda: fleet.is_ready(name), 30, f"{name} does not come back")
    assert text_of(lines) == text_of(whole)
    wait_for(lambda: fleet.rows("handed"), 10)
    assert fleet.sql(f"SELECT outcome, attempts FROM usage WHERE request_id = '{request_id}'") == [["ok", "1"]]
    assert [line for line in fleet.logged("gw0", "request.returned") if line["id"] == request_id]


def text_of(lines):
    """choice -> its text"""
    text = {}
    for line in lines:
        for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else []:
            text[choice["index"]] = text.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return text


def end_of(lines):
    """The last event, and whether the stream was called complete."""
    events = [line for line in lines if line.startswith("data: ")]
    return json.loads(events[-1][6:]) if events[-1] != "data: [DONE]" else None


def lease_keys(fleet):
    return fleet.redis_call("KEYS", "tg:g:*")


def test_a_gateway_whose_time_is_over_ends_what_is_open_and_tells_the_workers(fleet):
    fleet.configure("gw0", drain_ms=200, drain_grace_ms=0)
    wait_for(lambda: fleet.logged("gw0", "gateway.reloaded"))
    gateway, client = fleet.by_name["gw0"], fleet.client(0, fleet.make_key("late"))
    request_id, lines = client.stream(3900, n=8)
    before, workers = len(gateway.exits), [fleet.by_name[w] for w in ("w0", "w1")]
    for worker in workers:  # no frame comes meanwhile, so that only the end itself can have told them
        worker.send(signal.SIGSTOP)
    gateway.down = True  # it stays down: what follows is its own doing
    try:
        gateway.send(signal.SIGTERM)
        error = end_of(lines)["error"]
        assert "going out of service" in error["message"]
        wait_for(lambda: len(gateway.exits) > before, 30, "it does not end")
        assert gateway.exits[-1] == 0
        for key in lease_keys(fleet):  # so that no worker stops for want of a lease
            fleet.redis_call("PEXPIRE", key, 60000)
        (row,) = fleet.sql(f"SELECT outcome, completion_tokens FROM usage WHERE request_id = '{request_id}'")
        assert row[0] == "gateway_lost" and int(row[1]) > 0
        tenants = fleet.redis_call("SMEMBERS", "tg:tenants")
        assert not any(fleet.redis_call("SCARD", "tg:{%s}:open" % t.decode()) for t in tenants)
        for worker in workers:
            worker.send(signal.SIGCONT)
        (run,) = wait_for(lambda: [line for w in workers for line in fleet.logged(w.name, "run.end")
                                   if line["request"] == request_id], 20, "a worker goes on")
        assert run["made"] < 8 * 3900  # not to its own end
    finally:
        gateway.down = False
        for worker in workers:
            worker.send(signal.SIGCONT)


def test_a_second_signal_ends_a_gateway_at_once_and_its_journal_tells_the_rest(fleet):
    fleet.configure("gw1", drain_ms=600000, drain_grace_ms=600000)
    wait_for(lambda: fleet.logged("gw1", "gateway.reloaded"))
    gateway, client = fleet.by_name["gw1"], fleet.client(1, fleet.make_key("hurry"))
    request_id, lines = client.stream(3900, n=8)
    before, drains = len(gateway.exits), len(fleet.logged("gw1", "gateway.drain"))
    gateway.send(signal.SIGTERM)
    wait_for(lambda: len(fleet.logged("gw1", "gateway.drain")) > drains)
    gateway.send(signal.SIGTERM)
    wait_for(lambda: len(gateway.exits) > before, 30, "it does not end")
    assert gateway.exits[-1] == 0 and end_of(lines)
    wait_for(lambda: fleet.rows("hurry"), 30, "no row")
    ((ident, _, completion, outcome),) = fleet.rows("hurry")
    assert ident == request_id and outcome != "ok" and completion > 0
