"""`tiergate usage verify` finds what is planted, each by its name, and nothing else."""
import json
import signal
import struct
import subprocess
import time
from uuid import uuid4

import pytest

from fleet import running
from installation import wait_for

OLD_SECONDS = 3600  # no gateway needs so long


@pytest.fixture(scope="module")
def fleet():
    with running(gateways=1, workers=1, context=4096) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def known(fleet):
    """A whole answer of 40 tokens under limits of its tenant, recorded; the meta of an open one. Then the gateway stands still,
    so that it sweeps nothing of what is planted."""
    client = fleet.client(0, fleet.make_key("planted"))
    status, headers, _ = client.ask({"messages": [{"role": "user", "content": "x"}], "max_tokens": 40, "ignore_eos": True})
    assert status == 200
    wait_for(lambda: fleet.rows("planted"), 10, "no row")
    ((tenant,),) = fleet.sql("SELECT id FROM tenants WHERE name = 'tenant0'")
    stream = fleet.client(0, fleet.keys[0]["key"])
    open_id, _ = stream.stream(3900, n=8)
    text = fleet.redis_call("GET", f"tg:{{{tenant}}}:r:{open_id}").decode()
    assert checks(fleet) == set()  # what runs is no difference
    stream.close()
    wait_for(lambda: not fleet.redis_call("SCARD", f"tg:{{{tenant}}}:open"), 20, "it does not end")
    assert checks(fleet) == set()
    fleet.by_name["gw0"].send(signal.SIGSTOP)
    return {"id": headers["x-request-id"], "tenant": tenant, "meta": json.loads(text[text.index("{"):])}


def checks(fleet):
    """Names of the checks that found something."""
    done = subprocess.run([fleet.binary, "usage", "verify", *fleet.command_config, "--json"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert said["equal"] == (done.returncode == 0) == (said["differences"] == []), done.stderr
    return {d["check"] for d in said["differences"]}


def in_ledger(change):
    """SQL on a saved copy of both tables; ID is the request."""
    def plant(fleet, known):
        fleet.sql("CREATE TABLE was_usage AS TABLE usage; CREATE TABLE was_sums AS TABLE quota_used; "
                  + change.replace("ID", f"'{known['id']}'"))
        return lambda: fleet.sql("TRUNCATE usage, quota_used; INSERT INTO usage TABLE was_usage; "
                                 "INSERT INTO quota_used TABLE was_sums; DROP TABLE was_usage, was_sums")
    return plant


def record(state, of_row=False):
    """A record that a gateway of long ago left; it holds nothing in any scope."""
    def plant(fleet, known):
        then = int((time.time() - OLD_SECONDS) * 1000)
        ident, key = known["id"] if of_row else str(uuid4()), "tg:{%s}:" % known["tenant"]
        meta = json.dumps(known["meta"] | {"scopes": ""})
        fleet.redis_call("SET", f"{key}r:{ident}",
                         f"{state} 000000000 0 10 5 15 50 3 7 {then} {then} 5 3 36 ok 00000000000000aa {meta}")
        fleet.redis_call("SADD", f"{key}open", ident)
        return lambda: (fleet.redis_call("DEL", f"{key}r:{ident}"), fleet.redis_call("SREM", f"{key}open", ident))
    return plant


def counter(at, more=1):
    """So many more in a number of the tenant's counters."""
    def plant(fleet, known):
        key = "tg:{%s}:s:t" % known["tenant"]
        before = fleet.redis_call("GET", key)
        numbers = list(struct.unpack("<11d", before))
        numbers[at] += more
        fleet.redis_call("SET", key, struct.pack("<11d", *numbers), "KEEPTTL")
        return lambda: fleet.redis_call("SET", key, before, "KEEPTTL")
    return plant


FEWER = ("UPDATE usage SET completion_tokens = completion_tokens - 1, money = money - 7 WHERE request_id = ID; "
         "UPDATE quota_used q SET tokens = tokens - 1, money = q.money - 7 FROM usage u WHERE request_id = ID AND "
         "q.tenant_id = u.tenant_id AND q.scope IN ('t', 'u:' || user_id, 'k:' || key_id, 'm:' || model)")
PLANTED = {
    "a row deleted": (in_ledger("DELETE FROM usage WHERE request_id = ID"), {"sums"}),
    "a row twice": (in_ledger("CREATE TEMP TABLE x AS SELECT * FROM usage WHERE request_id = ID; UPDATE x SET request_id = "
                              "gen_random_uuid(); INSERT INTO usage TABLE x"), {"sums"}),
    "a token more in a row": (in_ledger("UPDATE usage SET completion_tokens = completion_tokens + 1 WHERE request_id = ID"),
                              {"sums", "money", "tokens", "produced"}),
    "a row worth less than its tokens": (in_ledger("UPDATE usage SET money = money - 7 WHERE request_id = ID; UPDATE quota_used "
                                                   "SET money = money - 7"), {"sums", "money", "used"}),
    "more tokens than were held": (in_ledger("UPDATE usage SET completion_tokens = 5000 WHERE request_id = ID"),
                                   {"sums", "money", "tokens", "produced"}),
    "fewer tokens than were made, and all sums with it": (in_ledger(FEWER), {"produced", "used"}),
    "an outcome that is none": (in_ledger("UPDATE usage SET outcome = 'fine' WHERE request_id = ID"), {"outcome"}),
    "sums that drifted": (in_ledger("UPDATE quota_used SET tokens = tokens + 1 WHERE scope = 't'"), {"sums", "used"}),
    "a hold left over": (record("o"), {"open"}),
    "a settlement without its row": (record("s"), {"settled"}),
    "a settlement that its row does not say": (record("s", of_row=True), {"settled", "used"}),  # and no scope counted it
    "a request held that nobody has": (counter(8), {"held"}),
    "tokens held that nobody has": (counter(9), {"held"}),
    "money held that nobody has": (counter(10), {"held"}),
    "tokens of a day that nobody used": (counter(4), {"used"}),
    "tokens of a day forgotten": (counter(4, -1), {"used"}),
    "tokens of a month that nobody used": (counter(6), {"used"}),
    "money of a month forgotten": (counter(7, -1), {"used"}),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found_by_its_name(fleet, known, what):
    plant, found = PLANTED[what]
    undo = plant(fleet, known)
    try:
        assert checks(fleet) == found
    finally:
        undo()
    assert checks(fleet) == set()
