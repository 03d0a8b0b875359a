"""Quotas, rate headers, Idempotency-Key, and the tools that explain the ledger, as clients and operators see them."""
import json
import re
import subprocess
import threading
import time

import pytest

from installation import BINARY, Installation, wait_for

CHAT = "/v1/chat/completions"
SHORT = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def home(model_file, tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("quota"), "--set", "model.small.price_in=3",
                                "--set", "model.small.price_out=15").start()
    yield installation
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


@pytest.fixture(scope="module")
def gateway(home):
    gateway = home.gateway()
    wait_for(gateway.works, 30, home.said)
    return gateway


@pytest.fixture
def caller(gateway, request):
    """A user of its own, so that no test's limits meet another's."""
    name = re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[:40]
    made = gateway.command("key", "create", "--tenant", "local", "--user", name, "--create-missing")
    return {"user": name, "key": made["key"]}


def limit(gateway, caller, **kinds):
    words = [word for kind, value in kinds.items() for word in (f"--{kind.replace('_', '-')}", str(value))]
    gateway.command("quota", "set", "--tenant", "local", "--user", caller["user"], *words)
    time.sleep(0.3)  # the gateway hears of it by NOTIFY


def post(gateway, caller, headers=None, **more):
    return gateway.post(CHAT, gateway.chat(**(SHORT | more)), key=caller["key"], headers=headers)


def verify(gateway):
    line = [BINARY, "usage", "verify", "--config", f"{gateway.ready['data_dir']}/run.ini", "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


# ---- headers


def test_no_limit_no_rate_headers(gateway, caller):
    status, headers, _ = post(gateway, caller)
    assert status == 200
    assert not [name for name in headers if name.startswith("x-ratelimit")]


def test_rate_headers_on_whole_answers_streams_and_refusals(gateway, caller):
    limit(gateway, caller, tokens_per_day=200, requests_per_minute=50)
    status, headers, body = post(gateway, caller)
    assert status == 200
    assert headers["x-ratelimit-limit-tokens"] == "200" and headers["x-ratelimit-limit-requests"] == "50"
    assert headers["x-ratelimit-remaining-requests"] == "49"
    held = body["usage"]["prompt_tokens"] + SHORT["max_tokens"]
    assert headers["x-ratelimit-remaining-tokens"] == str(200 - held)
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", headers["x-ratelimit-reset-tokens"])
    assert re.fullmatch(r"(1m)?\d+s", headers["x-ratelimit-reset-requests"])
    stream = gateway.stream(key=caller["key"], max_tokens=3)
    assert stream.headers["x-ratelimit-limit-tokens"] == "200"
    stream.rest()
    status, headers, body = post(gateway, caller, max_tokens=500)
    assert status == 429 and headers["x-ratelimit-limit-tokens"] == "200"


# ---- refusals


def test_a_budget_says_that_waiting_does_not_help(gateway, caller):
    limit(gateway, caller, tokens_per_month=20)
    status, headers, body = post(gateway, caller, max_tokens=500)
    assert status == 429 and body["error"]["code"] == "insufficient_quota"
    assert "tokens per month of your user: limit 20," in body["error"]["message"]
    assert headers["x-should-retry"] == "false" and "retry-after-ms" not in headers


def test_money_is_told_as_an_amount_with_the_end_of_its_month(gateway, caller):
    limit(gateway, caller, money_per_month="0.0000015")  # 1500 nano-units; a completion token costs 15
    status, _, body = post(gateway, caller, max_tokens=500)
    assert status == 429 and body["error"]["code"] == "insufficient_quota"
    told = re.search(r"money per month of your user: limit 0\.0000015, used or held 0\.00, this request needs "
                     r"(0\.0000\d+)\. The window ends at (\d{4})-(\d\d)-01 00:00 UTC\.", body["error"]["message"])
    assert told and float(told[1]) > 500 * 15e-9
    now = time.gmtime()
    assert (int(told[2]), int(told[3])) == (now.tm_year + now.tm_mon // 12, now.tm_mon % 12 + 1)
    line = [BINARY, "quota", "show", "--tenant", "local", "--config", f"{gateway.ready['data_dir']}/run.ini"]
    assert "money_per_month          0.0000015\n" in subprocess.run(line, capture_output=True, text=True).stdout
    done = subprocess.run([BINARY, "quota", "set", *line[3:], "--money-per-month", "1,5"], capture_output=True, text=True)
    assert done.returncode and "money-per-month" in done.stderr and "'1,5'" in done.stderr


def test_a_window_says_when_to_come_back(gateway, caller):
    limit(gateway, caller, requests_per_minute=1)
    if time.time() % 60 > 50:
        time.sleep(61 - time.time() % 60)
    assert post(gateway, caller)[0] == 200
    status, headers, body = post(gateway, caller)
    assert status == 429 and body["error"]["code"] == "rate_limit_exceeded"
    assert "requests per minute of your user: limit 1," in body["error"]["message"]
    assert 0 < int(headers["retry-after-ms"]) <= 60000
    assert "x-should-retry" not in headers


def test_a_refused_extension_ends_with_length_and_says_by_what(gateway, caller):
    limit(gateway, caller, tokens_per_day=100)
    stream = gateway.stream(key=caller["key"], max_tokens=None)
    events = stream.rest()
    assert events[-1] == "[DONE]"
    last = [e for e in events if isinstance(e, dict) and e["choices"][0]["finish_reason"]][-1]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["metadata"]["x-tiergate-limited-by"] == "tokens per day"
    row = gateway.row(stream.id)
    assert row["prompt_tokens"] + row["completion_tokens"] == 100


def test_an_explicit_demand_shrinks_only_when_it_may(gateway, caller):
    limit(gateway, caller, tokens_per_day=60)
    assert post(gateway, caller, max_tokens=200)[0] == 429
    status, headers, body = post(gateway, caller, headers={"x-tiergate-allow-truncate": "1"}, max_tokens=200,
                                 ignore_eos=True)
    assert status == 200 and body["choices"][0]["finish_reason"] == "length"
    assert headers["x-tiergate-limited-by"] == "tokens per day"
    assert body["usage"]["total_tokens"] == 60


# ---- the last tokens of a budget


def test_many_clients_at_the_last_tokens_overspend_nothing(gateway, caller):
    budget, n = 1500, 40
    limit(gateway, caller, tokens_per_day=budget)
    told = []

    def ask():
        status, headers, body = post(gateway, caller, max_tokens=None)
        told.append((status, body["usage"]["total_tokens"] if status == 200 else 0, headers["x-request-id"]))

    threads = [threading.Thread(target=ask) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = sum(total for _, total, _ in told)
    assert {status for status, _, _ in told} <= {200, 429}
    assert 0 < used <= budget
    for status, _, request_id in told:
        if status == 200:
            gateway.row(request_id)


# ---- Idempotency-Key


def test_a_repeated_request_gets_the_first_ones_answer_and_no_second_row(gateway, caller):
    first = post(gateway, caller, headers={"Idempotency-Key": "once"})
    again = post(gateway, caller, headers={"Idempotency-Key": "once"})
    assert first[0] == again[0] == 200
    assert again[2] == first[2]
    assert "x-tiergate-idempotent-replay" not in first[1] and again[1]["x-tiergate-idempotent-replay"] == "1"
    gateway.row(first[1]["x-request-id"])
    assert not [r for r in gateway.rows() if r["request_id"] == again[1]["x-request-id"]]


def test_the_same_key_with_another_body_is_refused(gateway, caller):
    assert post(gateway, caller, headers={"Idempotency-Key": "two"})[0] == 200
    status, _, body = post(gateway, caller, headers={"Idempotency-Key": "two"}, max_tokens=5)
    assert status == 422 and body["error"]["code"] == "idempotency_mismatch"


def test_a_request_that_still_runs_is_in_progress(gateway, caller):
    body = gateway.chat(max_tokens=300, ignore_eos=True)
    slow = threading.Thread(target=lambda: gateway.post(CHAT, body, key=caller["key"],
                                                        headers={"Idempotency-Key": "three"}))
    slow.start()
    time.sleep(0.3)
    status, headers, answer = gateway.post(CHAT, body, key=caller["key"], headers={"Idempotency-Key": "three"})
    slow.join()
    assert status == 409 and answer["error"]["code"] == "request_in_progress"
    assert headers["retry-after-ms"] == "1000"
    status, headers, _ = gateway.post(CHAT, body, key=caller["key"], headers={"Idempotency-Key": "three"})
    assert status == 200 and headers["x-tiergate-idempotent-replay"] == "1"


def test_a_stream_runs_again(gateway, caller):
    ids = set()
    for _ in range(2):
        stream = gateway.stream(key=caller["key"], headers={"Idempotency-Key": "four"}, max_tokens=3)
        assert stream.rest()[-1] == "[DONE]"
        assert "x-tiergate-idempotent-replay" not in stream.headers
        ids.add(stream.id)
    for request_id in ids:
        gateway.row(request_id)


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\tin it"], ids=["empty", "long", "tab"])
def test_a_bad_key_names_the_header(gateway, caller, key):
    status, _, body = post(gateway, caller, headers={"Idempotency-Key": key})
    assert status == 400 and body["error"]["param"] == "idempotency-key"


# ---- explaining


def test_why_tells_the_life_of_a_request(gateway, caller):
    limit(gateway, caller, tokens_per_day=100000)
    status, headers, body = post(gateway, caller)
    assert status == 200
    gateway.row(headers["x-request-id"])
    why = gateway.command("why", headers["x-request-id"])
    assert why["state"] == "recorded" and why["outcome"] == "ok" and why["user"] == caller["user"]
    assert why["route"] == headers["x-tiergate-route"]
    assert why["completion_tokens"] == body["usage"]["completion_tokens"] == why["steps"]
    assert why["held_tokens"] == body["usage"]["prompt_tokens"] + SHORT["max_tokens"]
    assert why["money"] == 3 * why["prompt_tokens"] + 15 * why["completion_tokens"] or why["cached_tokens"]
    assert len(why["gateway"]) == len(why["worker"]) == 16


def test_why_knows_a_request_that_is_open(gateway, caller):
    stream = gateway.stream(key=caller["key"], max_tokens=400)
    stream.read(3)
    why = gateway.command("why", stream.id)
    assert why["state"] == "open" and why["gateway_alive"] and why["granted"] == 400
    stream.close()
    gateway.row(stream.id)


def test_why_tells_how_far_a_cancelled_request_came(gateway, caller):
    stream = gateway.stream(key=caller["key"], max_tokens=2000)
    stream.read(3)
    stream.close()
    gateway.row(stream.id)
    line = [BINARY, "why", stream.id, "--config", f"{gateway.ready['data_dir']}/run.ini"]
    said = subprocess.run(line, capture_output=True, text=True).stdout
    words = [text.split()[0] for text in said.splitlines()]
    assert words == ["request", "accepted", "who", "route", "hold", "queue", "attempts", "cache", "steps", "first", "end",
                     "settled", "row"]
    assert f"{stream.id}: client_gone" in said and "money 0." in said


def test_why_says_that_a_refused_request_left_nothing(gateway, caller):
    limit(gateway, caller, tokens_per_day=10)
    status, headers, _ = post(gateway, caller, max_tokens=500)
    assert status == 429
    line = [BINARY, "why", headers["x-request-id"], "--config", f"{gateway.ready['data_dir']}/run.ini"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and "refused requests leave no row" in done.stderr


def test_why_says_when_nothing_is_known(gateway):
    line = [BINARY, "why", "01900000-0000-7000-8000-000000000000", "--config",
            f"{gateway.ready['data_dir']}/run.ini"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and "never accepted" in done.stderr


def test_the_ledger_adds_up(gateway):
    wait_for(lambda: verify(gateway)[0] == 0, 10, lambda: str(verify(gateway)))
    status, found = verify(gateway)
    assert status == 0 and found["equal"] and found["rows"] > 0 and found["differences"] == []
