"""A tenant with ten thousand requests in the queue, and visitors beside it: counted in passes of the engine, not in time."""
import threading
import time

import pytest

from fleet import running
from flood import Flood, make_visitor, visit, waiting
from installation import wait_for

FLOOD = 10_000
SLOTS = 8
STEP_MS = 150  # a pass of the tiny model alone is over before a bell is heard
BRIEF = {"max_tokens": 3, "ignore_eos": True, "messages": [{"role": "user", "content": "Hi"}]}
LONG = {"max_tokens": 100, "ignore_eos": True, "messages": [{"role": "user", "content": "Tell me more."}]}


@pytest.fixture(scope="module")
def fleet():
    options = {"gateway.queue_per_tenant": 2 * FLOOD, "gateway.request_ms": 3_600_000, "worker.slots": SLOTS}
    with running(gateways=2, workers=1, options=options) as fleet:
        worker = fleet.by_name["w0"]
        worker.stop()
        worker.env = {"TIERGATE_FAILPOINTS": f"worker.step.before=sleep:{STEP_MS}"}
        worker.start()
        fleet.wait_ready()
        yield fleet


@pytest.fixture(scope="module")
def flood(fleet):
    """Poured once the worker is busy with it."""
    flood = Flood(fleet.gateway_ports(), fleet.make_key("flood"), LONG)
    try:
        yield flood.start(FLOOD)
    finally:
        flood.stop()
        wait_for(lambda: waiting(fleet) == 0, 120, "the flood does not leave")


@pytest.fixture
def flooded(fleet, flood):
    wait_for(lambda: waiting(fleet) > FLOOD - 1000, 60, "the flood does not arrive")
    return fleet


def test_a_visitor_a_second_waits_two_steps_at_most(flooded):
    key, rows = make_visitor(flooded, "one"), []
    for _ in range(8):
        rows.append(visit(flooded, key, BRIEF))
        time.sleep(1)
    waits = [(row["queue_steps"], row["queue_ms"]) for row in rows]
    assert max(waits)[0] <= 2, waits
    assert waiting(flooded) > FLOOD - 1000  # it flooded all the time


def test_a_visitors_long_prompt_makes_no_difference(flooded):
    key = make_visitor(flooded, "long")
    row = visit(flooded, key, BRIEF | {"messages": [{"role": "user", "content": "x" * 200}]})
    assert row["prompt_tokens"] > 200
    assert row["queue_steps"] <= 2


def test_visitors_at_once_share_the_places(flooded):
    keys = [make_visitor(flooded, f"guest{i}") for i in range(20)]
    rows = []
    threads = [threading.Thread(target=lambda key=key: rows.append(visit(flooded, key, BRIEF))) for key in keys]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    waits = sorted(row["queue_steps"] for row in rows)
    assert len(waits) == 20
    assert waits[SLOTS - 2] <= 2, waits  # one place stays the flood's
    assert waits[-1] <= 2 + 3 * (3 + 2), waits  # three rounds of seven, three tokens each


def ended(fleet):
    """Completion tokens of each request of the flood that ended by itself."""
    return [completion for _, _, completion, outcome in fleet.rows("flood") if outcome == "ok"]


def test_what_gives_its_place_up_ends_with_all_its_tokens(flooded):
    key, before = make_visitor(flooded, "last"), len(ended(flooded))
    visit(flooded, key, BRIEF)
    wait_for(lambda: len(ended(flooded)) >= before + SLOTS, 120, "the flood stands still")
    assert set(ended(flooded)) == {LONG["max_tokens"]}


def test_why_says_the_steps(flooded):
    row = visit(flooded, make_visitor(flooded, "curious"), BRIEF)
    text = flooded.command("why", row["request_id"], *flooded.command_config)
    assert f"waited {row['queue_ms']} ms in tier 7b, {row['queue_steps']} steps of its worker\n" in text
