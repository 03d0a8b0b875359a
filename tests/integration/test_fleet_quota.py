"""The last tokens of a budget: 200 clients over TLS at two gateways. What clients were told is the oracle."""
import random
import re
import signal
import struct
import threading
import time

import pytest

from fleet import running
from installation import wait_for

CLIENTS = 200
GRANT = 64  # per choice of a request that names no max_tokens
PROMPT = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def fleet():
    with running(gateways=2, workers=2, context=4096, options={"gateway.default_max_tokens": GRANT, "worker.kv_bytes": "64MiB",
                                                               "gateway.request_ms": 60000}) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def prompt_tokens(fleet):
    status, _, body = fleet.client(0, fleet.make_key("measure")).ask({"messages": PROMPT, "max_tokens": 1})
    assert status == 200
    return body["usage"]["prompt_tokens"]


class Asked:
    """One request as its client saw it. `hold`: the most it may have held; `total`: what it was told to have used."""

    def __init__(self, hold):
        self.hold, self.total, self.sent, self.ended, self.refusal = hold, 0, time.monotonic(), None, None

    def end(self, status, body):
        self.ended = time.monotonic()
        if status == 200:
            self.total = body["usage"]["total_tokens"]
        else:
            assert status == 429 and body["error"]["code"] == "insufficient_quota", body
            self.refusal = body["error"]["message"]


def together(work):
    """work(i) on CLIENTS threads at once; what any of them raised."""
    failed, gate = [], threading.Barrier(CLIENTS)

    def run(i):
        try:
            gate.wait()
            work(i)
        except Exception as e:  # told below, by the test's own thread
            failed.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failed == []


def until_refused(fleet, key, make_body, hold_of, history):
    """Every client asks again as long as it gets answers."""
    def work(i):
        draw, client = random.Random(i), fleet.client(i, key)
        while True:
            body = make_body(draw)
            one = Asked(hold_of(body))
            status, _, answer = client.ask(body)
            one.end(status, answer)
            history.append(one)
            if one.refusal:
                break
        client.close()
    together(work)


def assert_no_room(one, limit, needs):
    told, used, needed = map(int, re.search(r"limit (\d+), used or held (\d+), this request needs (\d+)", one.refusal).groups())
    assert told == limit and needed == needs and used + needs > limit, one.refusal


def assert_not_early(one, history, limit):
    """What others can have used or held at most while it was asked, by their own clocks and answers."""
    most = sum(x.total if x.ended <= one.sent else max(x.hold, x.total) for x in history
               if not x.refusal and x.sent <= one.ended)
    assert most + one.hold > limit, f"at most {most} of {limit} were used or held; {one.refusal}"


def assert_ledger(fleet, user, history, limit):
    answers = [x for x in history if not x.refusal]
    used = sum(x.total for x in answers)
    wait_for(lambda: len(fleet.rows(user)) >= len(answers), 20, "rows are missing")
    rows = fleet.rows(user)
    assert len(rows) == len(answers) and sum(p + c for _, p, c, _ in rows) == used <= limit
    return used


def test_explicit_demands_get_all_of_it_and_not_one_token_more(fleet, prompt_tokens):
    user, limit, history = "explicit", 12000 + random.randrange(1000), []
    key = fleet.make_key(user)
    fleet.limit(user, tokens_per_day=limit)
    time.sleep(0.5)  # gateways hear of it by NOTIFY

    def body(draw):
        return {"messages": PROMPT, "max_tokens": draw.choice([1, 4, 9, 16]), "seed": draw.randrange(1, 1 << 30)}

    until_refused(fleet, key, body, lambda b: prompt_tokens + b["max_tokens"], history)
    for one in [x for x in history if x.refusal]:
        assert_no_room(one, limit, one.hold)
        assert_not_early(one, history, limit)
    left = limit - assert_ledger(fleet, user, history, limit)
    assert left < prompt_tokens + 16
    client = fleet.client(0, key)
    while left > prompt_tokens:  # nothing else runs: the rest can be had to the last token, and one more cannot
        rest = {"messages": PROMPT, "ignore_eos": True}
        assert client.ask(rest | {"max_tokens": left - prompt_tokens + 1})[0] == 429
        status, _, answer = client.ask(rest | {"max_tokens": left - prompt_tokens})
        assert status == 200 and answer["usage"]["total_tokens"] == left
        left -= answer["usage"]["total_tokens"]
    assert client.ask({"messages": PROMPT, "max_tokens": 1})[0] == 429
    client.close()


def test_demands_without_max_tokens_share_the_last_tokens(fleet, prompt_tokens):
    user, limit, history = "implicit", 12000 + random.randrange(1000), []
    key = fleet.make_key(user)
    fleet.limit(user, tokens_per_day=limit)
    time.sleep(0.5)

    def body(draw):
        return {"messages": PROMPT, "stop": ["e", "t", "#", "7"], "seed": draw.randrange(1, 1 << 30)}

    answers = -1
    while answers < sum(not x.refusal for x in history):  # until a round in which nobody gets an answer
        answers = sum(not x.refusal for x in history)
        until_refused(fleet, key, body, lambda b: 0, history)
    for one in [x for x in history if x.refusal]:
        assert_no_room(one, limit, prompt_tokens + 1)
    assert limit - assert_ledger(fleet, user, history, limit) <= prompt_tokens


def test_a_demand_without_max_tokens_holds_its_share_and_no_more(fleet, prompt_tokens):
    """With the workers stopped, 200 of them hold 64 tokens each, though the model would allow thousands; the rest is another's."""
    user, rest, told = "sharing", 500, []
    limit = CLIENTS * (prompt_tokens + GRANT) + rest
    key = fleet.make_key(user)
    fleet.limit(user, tokens_per_day=limit)
    time.sleep(0.5)
    for worker in fleet.roles("w"):
        worker.send(signal.SIGSTOP)
    waiting = threading.Thread(target=together, args=(lambda i: told.append(fleet.client(i, key).ask(
        {"messages": PROMPT, "stop": ["e", "t", "#", "7"], "seed": i + 1})[0]),))
    waiting.start()
    probe = fleet.client(1, key)
    explicit = {"messages": PROMPT, "ignore_eos": True}

    def held():
        message = probe.ask(explicit | {"max_tokens": 4000, "n": 8})[2]["error"]["message"]
        return int(re.search(r"used or held (\d+)", message)[1])

    try:
        wait_for(lambda: held() == limit - rest, 30, lambda: f"{held()} of {limit} are held")
        assert probe.ask(explicit | {"max_tokens": rest - prompt_tokens + 1})[0] == 429
        exact = threading.Thread(target=lambda: told.append(fleet.client(0, key).ask(
            explicit | {"max_tokens": rest - prompt_tokens})[0]))
        exact.start()
        wait_for(lambda: held() == limit, 30, "the rest cannot be had")
        assert probe.ask({"messages": PROMPT})[0] == 429
        wait_for(lambda: fleet.metric("gw0", "tiergate_holds") == CLIENTS + 1, 30, "no sweep counts the holds")
    finally:
        for worker in fleet.roles("w"):
            worker.send(signal.SIGCONT)
    waiting.join()
    exact.join()
    assert told == [200] * (CLIENTS + 1)


def test_the_first_limit_of_a_scope_does_not_count_what_runs_then(fleet, prompt_tokens):
    """What runs is not held there and not given back there: used on top, once. Later requests get the limit to the token."""
    user, limit, told = "first", 200, {}
    key = fleet.make_key(user)
    ((tenant, ident),) = fleet.sql(f"SELECT tenant_id, id FROM users WHERE name = '{user}'")
    scope, clients = "tg:{%s}:s:u:%s" % (tenant, ident), [fleet.client(i, key) for i in range(2)]

    def ask(name, tokens):
        body = {"messages": PROMPT, "max_tokens": tokens, "ignore_eos": True}
        thread = threading.Thread(target=lambda: told.update({name: fleet.client(0, key).ask(body)}))
        thread.start()
        return thread

    def counters():
        """Tokens of the day, of the month; requests, tokens and money held."""
        numbers = struct.unpack("<11d", fleet.redis_call("GET", scope))
        return numbers[4], numbers[6], *numbers[8:]

    def is_limited(client):
        """A request that is too large is refused; before the gateway has heard of the limit, its deadline ends it unrun."""
        return client.ask({"messages": PROMPT, "max_tokens": limit}, {"x-tiergate-deadline-ms": "200"})[0] == 429

    def n_held():
        return fleet.redis_call("SCARD", "tg:{%s}:open" % tenant)

    for worker in fleet.roles("w"):
        worker.send(signal.SIGSTOP)
    try:
        older = ask("older", 3 * limit)
        wait_for(lambda: n_held() == 1, 20, "it is not held")
        fleet.limit(user, tokens_per_day=limit)
        wait_for(lambda: all(map(is_limited, clients)), 20, "the limit is not known")
        newer = ask("newer", 20)
        wait_for(lambda: counters() == (0, 0, 1, prompt_tokens + 20, 3 * prompt_tokens + 7 * 20), 20, lambda: str(counters()))
    finally:
        for worker in fleet.roles("w"):
            worker.send(signal.SIGCONT)
    older.join()
    newer.join()
    assert [told[name][0] for name in ("older", "newer")] == [200, 200]
    on_top, counted = (told[name][2]["usage"]["total_tokens"] for name in ("older", "newer"))
    assert on_top > limit and counters() == (counted, counted, 0, 0, 0)
    rest, client = {"messages": PROMPT, "ignore_eos": True}, clients[1]
    assert client.ask(rest | {"max_tokens": limit - counted - prompt_tokens + 1})[0] == 429
    assert client.ask(rest | {"max_tokens": limit - counted - prompt_tokens})[0] == 200
    assert client.ask(rest | {"max_tokens": 1})[0] == 429 and counters() == (limit, limit, 0, 0, 0)
    missed = f"used: tenant {tenant}, scope u:{ident}: Redis counts {limit} tokens on "
    wait_for(lambda: missed in (said := fleet.verify()) and " 1 differences" in said, 30, fleet.verify)
    assert sum(p + c for _, p, c, _ in fleet.rows(user)) == limit + on_top
    fleet.redis_call("DEL", scope)  # loaded anew it has the ledger's sums
    assert client.ask(rest | {"max_tokens": 1})[0] == 429 and counters() == (limit + on_top, limit + on_top, 0, 0, 0)
    assert fleet.adds_up(), fleet.verify()


def test_rows_that_wait_for_the_database_show_in_the_metrics(fleet):
    postgres, user = fleet.by_name["postgres"], "waiting"
    client = fleet.client(0, fleet.make_key(user))
    body = {"messages": PROMPT, "max_tokens": 4}
    assert client.ask(body)[0] == 200  # its key is known
    wait_for(lambda: len(fleet.rows(user)) == 1)
    postgres.down = True
    postgres.send(signal.SIGQUIT)
    wait_for(lambda: not postgres.is_alive(), 30, "PostgreSQL does not end")
    try:
        assert client.ask(body)[0] == 200
        wait_for(lambda: fleet.metric("gw0", "tiergate_usage_oldest_seconds") >= 1, 30, "the oldest row has no age")
        assert fleet.metric("gw0", "tiergate_usage_waiting") == 1 and fleet.metric("gw0", "tiergate_journal_bytes") > 0
    finally:
        postgres.down = False
    fleet.wait("PostgreSQL", lambda: fleet.sql("SELECT 1"))
    wait_for(lambda: len(fleet.rows(user)) == 2, 60, "the row does not come")
    wait_for(lambda: fleet.metric("gw0", "tiergate_usage_oldest_seconds") == 0, 30, "its age stays")
    assert fleet.metric("gw0", "tiergate_usage_waiting") == 0
