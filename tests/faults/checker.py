"""Joins what the clients saw, what the journals accepted and what the ledger holds, and says where P1 to P6 are broken.

It reads the clients' history (load.py), the journals' lines, tables of PostgreSQL and, at the end, what is left in
Redis: nothing that the product counts about itself. Faults (events of faults.py) only loosen what the protocol itself
loosens: an exact row when its gateway was lost, and success without a cause.
"""
import json
import struct
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date, timedelta

READ_TO_ITS_END = ("done", "error_event", "dropped", "refused")
CODES = {  # what an accepted or refused request of this load may be told
    "dependency_unavailable", "server_is_overloaded", "server_error", "poison_request", "deadline_exceeded",
    "rate_limit_exceeded", "insufficient_quota", "request_in_progress", "superseded", None,
}
BY_LIMIT = ("rate_limit_exceeded", "insufficient_quota")
ATTEMPTS_MOST = 3
CONTEXT = 256  # of the model
HEARS_SECONDS = 2  # so late a worker may learn that a request has ended
LINGERS_SECONDS = 45  # so long a request that broke may hold its tokens: the sweep, and a gateway that is stopped


@dataclass
class Violation:
    rule: str
    at: float  # when the request began; 0: of the whole run
    text: str

    def __str__(self):
        return f"{self.rule}: {self.text}"


@dataclass
class Row:
    id: str
    tenant: str
    user: str
    key: str
    day: str
    outcome: str
    attempts: int
    prompt: int
    cached: int
    completion: int
    money: int


ROWS_SQL = ("SELECT request_id, tenant_id, user_id, key_id, (at AT TIME ZONE 'UTC')::date, outcome, attempts, "
            "prompt_tokens, cached_tokens, completion_tokens, money FROM usage")


def read_rows(site):
    return [Row(*r[:6], *map(int, r[6:])) for r in site.sql(ROWS_SQL, 120)]


def read_history(paths):
    return [json.loads(line) for path in paths for line in open(path)]


def journal_lines(path):
    """(kind, id) of each line with a right checksum."""
    for line in open(path, "rb"):
        crc, _, rest = line.rstrip(b"\n").partition(b" ")
        try:
            if int(crc, 16) != zlib.crc32(rest):
                continue
        except ValueError:
            continue
        words = rest.split(b" ", 2)
        yield words[0].decode(), words[1].decode()


def read_journals(site):
    """ids with a line A: accepted."""
    paths = {(p.stat().st_dev, p.stat().st_ino): p
             for p in [*site.dir.glob("gw?/journal/*.log"), *site.dir.glob("gw?/journal/keep/*")]}
    return {ident for path in paths.values() for kind, ident in journal_lines(path) if kind == "A"}


def read_worker_logs(site):
    """id -> the most tokens that any run of it had received and made."""
    most = Counter()
    for path in site.dir.glob("logs/w*.log"):
        for line in open(path, errors="replace"):
            if '"run.end"' in line:
                x = json.loads(line)
                most[x["request"]] = max(most[x["request"]], x["had"] + x["made"])
    return most


class Checker:
    def __init__(self, history, rows, accepted, made, kinds, faults, prices=(3, 1, 7)):
        self.history, self.rows, self.accepted, self.made = history, rows, accepted, made
        self.kinds = kinds  # each: prompt_tokens, references [(text, finish)] per choice
        self.faults = faults  # each: begin, end (recovered), gateways (set of indices), redis, kills_worker,
        # drains
        self.prices = prices
        self.by_id = {r.id: r for r in rows}
        self.sessions = defaultdict(list)
        for x in history:
            if x.get("session"):
                self.sessions[session_of(x)].append(x)
        self.poisoned = {r.tenant for r in rows if r.outcome == "dead_letter"}  # their bodies are refused for a while
        self.found = []

    def say(self, rule, x, text):
        self.found.append(Violation(rule, x["began"] if x else 0, f"{text}{' ' + brief(x) if x else ''}"))

    # ---- what the faults allow

    def overlapping(self, x, after=0):
        """The faults of its life and of so many seconds after its end."""
        began = min(x["began"], x.get("idle_since", x["began"])) if x["id"] is None else x["began"]
        return [f for f in self.faults if f["begin"] <= x["ended"] + after and began <= f["end"]]

    def is_gateway_lost(self, x):
        """Was its gateway killed, stopped or cut off from Redis, or Redis lost, at any time of its life?"""
        return any(x["gateway"] in f["gateways"] or f["redis"] for f in self.overlapping(x))

    # ---- one request

    def check_end(self, x):
        if x["code"] and x["code"] == x.get("expected"):
            return
        if x["code"] == "superseded":
            return self.check_superseded(x)
        if x["end"] in ("hung", "malformed"):
            self.say("P1", x, f"the client saw no outcome that the API knows: {x['end']} {x.get('why', '')}")
        if x["code"] not in CODES or x["status"] in (400, 401, 403, 404, 413):
            self.say("P1", x, "an error that has no cause in this load")
        failed = x["end"] in ("dropped", "refused", "error_event", "unsent") and x["code"] not in BY_LIMIT
        failed = failed and not (x["code"] == "request_in_progress" and "again" in x)
        failed = failed and not (x["code"] == "poison_request" and x["tenant_id"] in self.poisoned)
        faults = self.overlapping(x)
        if failed and not faults:
            self.say("P1", x, "failed without any fault")
        begun = x["end"] in ("error_event", "dropped") and x["status"] == 200
        if begun and faults and all(f["drains"] for f in faults):
            self.say("P1", x, "begun, and cut by an orderly stop")

    def check_superseded(self, x):
        """There is a newer one of its session: any that was on its way in x's life and did not answer before x began."""
        others = [y for y in self.sessions[session_of(x)] if y is not x and y["began"] <= x["ended"] and x["began"] <= y["ended"]]
        if x["session"] is None or all(y["first"] and y["first"] < x["began"] for y in others):
            self.say("P1", x, f"superseded, and none of {len(others)} others of its session is newer")
        if x["end"] == "refused" and (x["status"], x["retry"]) != (409, "false"):
            self.say("P1", x, f"superseded with status {x['status']}, x-should-retry {x['retry']}")

    def check_sessions(self):
        """At one gateway an older one ends before a newer one is answered, but for what was complete just then."""
        late, pairs = 0, 0
        for of in self.sessions.values():
            for y in of:
                older = [x for x in of if y["first"] and x["gateway"] == y["gateway"] and x["first"] and x["first"] < y["began"]
                         and x["ended"] > y["began"] and x["stream"] and not self.is_gateway_lost(x)]
                pairs += len(older)
                late += sum(x["end"] == "done" and x["ended"] > y["first"] for x in older)
        if late > 3 and late > pairs / 2:
            self.say("P1", None, f"{late} of {pairs} streams outlived a newer request of their session")

    def check_row_exists(self, x):
        if x.get("replayed"):
            if x["id"] in self.accepted or x["id"] in self.by_id:
                self.say("P2", x, "a stored answer was charged again")
            return
        if x.get("again") == "done" and x["end"] == "done" and not any(f["redis"] for f in self.overlapping(x)):
            self.say("P2", x, "it ran twice with one Idempotency-Key")
        # A stream whose hold is not answered for 10 s gets its 200 before it is accepted; then an error may be all it has.
        is_answered = x["status"] == 200 and (x["end"] != "error_event" or any(x["texts"]))
        if is_answered and x["id"] not in self.accepted:
            self.say("P1", x, "answered, and no journal has its line A")
        if x["id"] in self.accepted and x["id"] not in self.by_id:
            self.say("P1", x, "accepted, and there is no row")

    def check_text(self, x):
        references = self.kinds[x["kind"]]["references"]
        for text, finish, (whole, last) in zip(x["texts"], x["finish"], references):
            if not whole.startswith(text):
                at = next((i for i, (a, b) in enumerate(zip(text, whole)) if a != b), len(whole))
                self.say("P6", x, f"position {at} is wrong: {text[at - 3 if at > 2 else 0:at + 6]!r}, not "
                         f"{whole[at - 3 if at > 2 else 0:at + 6]!r}")
            elif finish == "stop" and (text, finish) != (whole, last):
                self.say("P6", x, "it says stop before its end")
            elif finish == "length" and x["max_tokens"] and len(text) != x["max_tokens"]:
                self.say("P6", x, f"it says length after {len(text)} tokens")

    def check_counts(self, x, row):
        received = sum(map(len, x["texts"])) + x["finish"].count("stop")
        unsaid = x["finish"].count(None) if x["end"] != "done" else 0  # an end token may have come without its name
        loose = self.is_gateway_lost(x)
        if x["end"] == "done":
            if not row.completion == received == x["usage"]:
                self.say("P3", x, f"the row has {row.completion} tokens, usage {x['usage']}, the text {received}")
            if row.outcome != "ok":
                self.say("P3", x, f"complete for the client, '{row.outcome}' in the row")
            return
        if x["stream"] and x["end"] in READ_TO_ITS_END and row.completion > received + unsaid:
            self.say("P3", x, f"the row has {row.completion} tokens, the client was handed {received}")
        if not loose and row.completion < received:
            self.say("P3", x, f"the row has {row.completion} tokens, the client got {received}")
        if row.outcome == "ok" and x["end"] == "error_event" and not loose:
            self.say("P1", x, "an error for the client, 'ok' in the row")
        if x["end"] in ("refused", "error_event") and not loose and (x["code"] == "superseded") != (row.outcome == "superseded"):
            self.say("P1", x, f"{x['code']} for the client, '{row.outcome}' in the row")

    def check_made(self, row, x):
        """A killed worker writes down nothing of what it had made, and it may hear later than the client that all is over."""
        if not any(f["kills_worker"] for f in self.overlapping(x, HEARS_SECONDS)) and row.completion > self.made[row.id]:
            self.say("P3", x, f"the row has {row.completion} tokens, workers made {self.made[row.id]}")

    def check_row(self, row, x):
        if row.attempts > ATTEMPTS_MOST:
            self.say("P6", x, f"{row.attempts} attempts of {row.id}")
        full, cached, out = self.prices
        if row.money != (row.prompt - row.cached) * full + row.cached * cached + row.completion * out:
            self.say("P2", x, f"row {row.id} costs {row.money}, which its tokens do not")
        if x and row.prompt not in (0, self.kinds[x["kind"]]["prompt_tokens"]):
            self.say("P3", x, f"the row has {row.prompt} prompt tokens")
        if row.id not in self.accepted:
            self.say("P1", x, f"row {row.id} is there, and no journal has its line A")

    # ---- all of them

    def check_ids(self):
        ids = Counter(x["id"] for x in self.history if x["id"])
        for ident, n in ids.items():
            if n > 1:
                self.say("P1", None, f"{n} requests were answered as {ident}")
        missing = self.accepted - self.by_id.keys()
        for ident in sorted(missing - ids.keys()):
            self.say("P1", None, f"{ident} was accepted (its client lost the connection) and has no row")
        unnamed = sum(x["id"] is None and x["end"] in ("dropped", "cancelled") for x in self.history)
        strangers = self.by_id.keys() - ids.keys()
        if len(strangers) > unnamed:
            self.say("P1", None, f"{len(strangers)} rows of requests that no client saw, {unnamed} could be")

    def check_sums(self, quota_used):
        """quota_used: (tenant, scope, day) -> requests, tokens, money."""
        sums = defaultdict(lambda: [0, 0, 0])
        for r in self.rows:
            for scope in ("t", f"u:{r.user}", f"k:{r.key}", "m:faults"):
                s = sums[r.tenant, scope, r.day]
                s[0] += 1
                s[1] += r.prompt + r.completion
                s[2] += r.money
        for key in sums.keys() | quota_used.keys():
            want, got = sums.get(key, [0, 0, 0]), quota_used.get(key, [0, 0, 0])
            if want != got:
                self.say("P2", None, f"quota_used of {key} is {got}, its rows sum up to {want}")

    def check_limits(self, limits, limited, most_in_flight):
        """limits: (tenant, scope) -> tokens a day. P4: exact while Redis kept its data, else within what was in flight."""
        used = Counter()
        for r in self.rows:
            for scope in ("t", f"u:{r.user}"):
                used[r.tenant, scope, r.day] += r.prompt + r.completion
        losses = sum(f["redis"] for f in self.faults)
        for (tenant, scope, day), n in used.items():
            limit = limits.get((tenant, scope))
            if limit is not None and n > limit + losses * most_in_flight:
                self.say("P4", None, f"{n} tokens of {scope} of {tenant} were used on {day}, {limit} were allowed"
                         f"{f', {losses} losses of {most_in_flight} at most' if losses else ''}")
        for x in self.history:
            tenant, user = x["tenant_id"], x["user_id"]
            if x["code"] in BY_LIMIT and tenant not in limited:
                self.say("P4", x, "refused by a limit that nobody set")
        for (tenant, scope), limit in limits.items():
            if scope.startswith("u:"):
                self.check_early(limit, [x for x in self.history if x["tenant_id"] == tenant and x["user_id"] == scope[2:]])

    def demand(self, x, per_choice):
        return self.kinds[x["kind"]]["prompt_tokens"] + x["n_choices"] * per_choice

    def most_held(self, x):
        """Explicit: as asked. Implicit: it may have grown to the model's context."""
        return self.demand(x, x["max_tokens"] or CONTEXT)

    def check_early(self, limit, requests):
        """P4, the other half: no refusal while the budget covers the demand and all that could be held or used just then."""
        known = {x["id"] for x in requests}
        strangers = sum(r.prompt + r.completion for r in self.rows if requests and r.id not in known
                        and r.user == requests[0]["user_id"])
        for x in requests:
            if x["code"] != "insufficient_quota":
                continue
            taken = strangers
            for y in requests:
                if y["end"] == "refused" and y["id"] not in self.by_id or y["began"] > x["ended"] or y is x:
                    continue
                is_settled = y["ended"] < x["began"] and y["id"] in self.by_id and (
                    y["end"] == "done" or y["ended"] + LINGERS_SECONDS < x["began"])
                row = self.by_id.get(y["id"])
                taken += row.prompt + row.completion if is_settled else self.most_held(y)
            if taken + self.demand(x, x["max_tokens"] or 1) <= limit:
                self.say("P4", x, f"refused although at most {taken} of {limit} tokens were held and used")

    def check_scopes(self, counters):
        """counters: (tenant, scope) -> day number, tokens; Redis and the ledger agree while Redis kept its data."""
        if any(f["redis"] for f in self.faults):
            return
        sums = Counter()
        for r in self.rows:
            for scope in ("t", f"u:{r.user}", f"k:{r.key}", "m:faults"):
                sums[r.tenant, scope, r.day] += r.prompt + r.completion
        for (tenant, scope), (day, tokens) in counters.items():
            text = str(date(1970, 1, 1) + timedelta(days=int(day)))
            if sums[tenant, scope, text] != tokens:
                self.say("P4", None, f"Redis counts {tokens:.0f} tokens of {scope} of {tenant}, the rows sum up to "
                         f"{sums[tenant, scope, text]}")

    def run(self, quota_used, limits, limited, most_in_flight, counters):
        if len(self.by_id) != len(self.rows):
            self.say("P2", None, "an id has two rows")
        of = {x["id"]: x for x in self.history if x["id"]}
        for x in self.history:
            self.check_end(x)
            self.check_row_exists(x)
            self.check_text(x)
            if x["id"] in self.by_id:
                self.check_counts(x, self.by_id[x["id"]])
                self.check_made(self.by_id[x["id"]], x)
        for r in self.rows:
            self.check_row(r, of.get(r.id))
        self.check_ids()
        self.check_sessions()
        self.check_sums(quota_used)
        self.check_limits(limits, limited, most_in_flight)
        self.check_scopes(counters)
        return self.found


def session_of(x):
    """Those it competes with; the load names sessions in one task only."""
    return x["key"], x.get("session")


def brief(x):
    return (f"(request {x['n']} {x['id']} at gateway {x['gateway']}, {'streamed' if x['stream'] else 'whole'}, "
            f"{x['end']}{' ' + str(x['code']) if x['code'] else ''}, began {x['began']:.3f}, took "
            f"{x['ended'] - x['began']:.3f} s)")


def read_quota_used(site):
    rows = site.sql("SELECT tenant_id, scope, day, requests, tokens, money FROM quota_used")
    return {tuple(r[:3]): [int(v) for v in r[3:]] for r in rows}


def read_scopes(site):
    """(tenant, scope) -> the eleven counters that Redis keeps of it (router/quota.lua)."""
    found = {}
    for key in site.redis_call("KEYS", "tg:{*}:s:*"):
        tenant, _, scope = key.decode()[4:].partition("}:s:")
        value = site.redis_call("GET", key)
        if value and len(value) == 88:
            found[tenant, scope] = struct.unpack("<11d", value)
    return found


def day_counters(site):
    return {key: (c[3], c[4]) for key, c in read_scopes(site).items()}


def left_in_redis(site):
    """What must not be there once everything has ended: open records, waiting entries, held tokens."""
    left = [name for name in (key.decode() for key in site.redis_call("KEYS", "tg:*"))
            if ":r:" in name or name.endswith(":open") or ":q:" in name]
    return left + [f"{key} holds {c[8:]}" for key, c in read_scopes(site).items() if any(c[8:])]
