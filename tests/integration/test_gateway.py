"""The gateway as a process: signals, silences, and what it tells its operators."""
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from installation import whole_lines

CHAT = "/v1/chat/completions"


def gateway_pid(gateway):
    return gateway.ready["pids"]["gateway"][0]


def log_lines(gateway, event):
    lines = whole_lines(Path(gateway.ready["data_dir"]) / "logs" / "gateway.log")
    told = (json.loads(line) for line in lines if line.startswith("{"))
    return [line for line in told if line["event"] == event]


def wait_for(what, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail("waited in vain")


def ops(gateway, path):
    with urllib.request.urlopen(gateway.ready["ops_url"] + path, timeout=10) as answer:
        return answer.status, answer.read().decode()


def test_operations_say_alive_ready_and_the_figures(gateway, client, model):
    client.completions.create(model=model, prompt="Once", max_tokens=2)
    assert ops(gateway, "/healthz")[0] == 200
    assert ops(gateway, "/readyz")[0] == 200
    text = ops(gateway, "/metrics")[1]
    for name in ('tiergate_requests_total{route="completions",code="200"}', 'tiergate_tokens_total{kind="completion"}',
                 'tiergate_first_token_seconds_bucket{route="completions"', "tiergate_open_streams"):
        assert name in text
    assert gateway.key not in text and "local" not in text


def test_an_access_line_names_the_request_and_no_secret(gateway, model):
    secret = "a prompt that nobody may read 8461"
    _, headers, body = gateway.post("/v1/completions", {"model": model, "prompt": secret, "max_tokens": 3})
    lines = [line for line in log_lines(gateway, "http.access") if line["request_id"] == headers["x-request-id"]]
    assert len(lines) == 1
    assert lines[0]["status"] == 200 and lines[0]["outcome"] == "ok" and lines[0]["tenant"] and lines[0]["key"]
    assert lines[0]["completion_tokens"] == body["usage"]["completion_tokens"]
    text = (Path(gateway.ready["data_dir"]) / "logs" / "gateway.log").read_text()
    assert secret not in text and gateway.key not in text


def test_the_row_carries_the_id_that_the_client_was_told(gateway, model):
    _, headers, body = gateway.post("/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 3})

    def row():
        rows = gateway.command("usage", "--requests", "--limit", "20")
        return next((r for r in rows if headers["x-request-id"] in r.values()), None)

    assert wait_for(row, 10)["completion_tokens"] == body["usage"]["completion_tokens"]


def reload_with(gateway, old, new):
    """Changes run.ini, sends SIGHUP and returns what the gateway says of it."""
    before = len(log_lines(gateway, "gateway.reloaded"))
    run_ini = Path(gateway.ready["data_dir"]) / "run.ini"
    run_ini.write_text(run_ini.read_text().replace(old, new))
    os.kill(gateway_pid(gateway), signal.SIGHUP)
    wait_for(lambda: len(log_lines(gateway, "gateway.reloaded")) > before, 10)
    return log_lines(gateway, "gateway.reloaded")[-1]


def test_sighup_takes_over_what_may_change_and_names_what_may_not(gateway):
    said = reload_with(gateway, "log_level = info\n", "log_level = debug\n")
    assert said["changed"] == 1 and said["needs_restart"] == ""
    said = reload_with(gateway, "log_level = debug\n", "log_level = info\n")
    assert said["changed"] == 1
    said = reload_with(gateway, "max_messages = 2048\n", "max_messages = 2047\n")
    assert said["changed"] == 0 and said["needs_restart"] == "gateway.max_messages"
    reload_with(gateway, "max_messages = 2047\n", "max_messages = 2048\n")
    assert gateway.works()


@pytest.mark.parametrize("old, new, named", [
    ("resume_ms = 15000\n", "resume_ms = soon\n", "gateway.resume_ms"),
    ("log_level = info\n", "log_level = loud\n", "general.log_level"),
    ("queue_per_tier = 50000\n", "queue_per_tier = 5\n", "gateway.queue_per_tenant"),
    ("[redis]\n", "[redos]\n", "redos"),
], ids=["number", "choice", "contradiction", "section"])
def test_sighup_with_a_wrong_configuration_changes_nothing_and_names_the_key(gateway, old, new, named):
    run_ini = Path(gateway.ready["data_dir"]) / "run.ini"
    right, before = run_ini.read_text(), len(log_lines(gateway, "gateway.reload_failed"))
    assert old in right
    run_ini.write_text(right.replace(old, new))
    try:
        os.kill(gateway_pid(gateway), signal.SIGHUP)
        wait_for(lambda: len(log_lines(gateway, "gateway.reload_failed")) > before, 10)
    finally:
        run_ini.write_text(right)
    assert named in log_lines(gateway, "gateway.reload_failed")[-1]["message"]
    said = reload_with(gateway, "", "")
    assert said["changed"] == 0 and gateway.works()


def test_sighup_does_not_end_a_worker(gateway):
    (worker,) = gateway.ready["pids"]["worker"]
    os.kill(worker, signal.SIGHUP)
    assert gateway.works() and os.path.exists(f"/proc/{worker}") and gateway.ready["pids"]["worker"] == [worker]


def test_sighup_while_streams_run_disturbs_none(gateway, client, model):
    told = []

    def read():
        stream = client.completions.create(model=model, prompt="Once", max_tokens=60, stream=True, seed=1,
                                           extra_body={"ignore_eos": True})
        told.append(sum(1 for _ in stream))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        os.kill(gateway_pid(gateway), signal.SIGHUP)
        time.sleep(0.05)
    for reader in readers:
        reader.join()
    assert told == [61] * 4


def test_a_silent_worker_delays_the_status_for_ten_seconds_at_most(gateway, client, model):
    worker = gateway.ready["pids"]["worker"][0]
    os.kill(worker, signal.SIGSTOP)
    started = time.monotonic()
    try:
        stream = client.completions.create(model=model, prompt="Once", max_tokens=3, stream=True)
        waited = time.monotonic() - started
    finally:
        os.kill(worker, signal.SIGCONT)
    assert 9 < waited < 13
    assert [c.choices[0].finish_reason for c in stream][-1] in ("stop", "length")


def test_sigterm_lets_a_stream_finish_and_up_starts_another_gateway(gateway, client, model):
    old = gateway_pid(gateway)
    stream = client.completions.create(model=model, prompt="Once", max_tokens=80, stream=True,
                                       extra_body={"ignore_eos": True})
    events = iter(stream)
    next(events)
    os.kill(old, signal.SIGTERM)
    rest = list(events)  # raises when the stream is cut
    assert rest[-1].choices[0].finish_reason == "length" and len(rest) == 80

    def restarted():
        try:
            os.kill(old, 0)
        except ProcessLookupError:
            return gateway.works()
        return False

    wait_for(restarted, 60)
    assert log_lines(gateway, "gateway.ends")
