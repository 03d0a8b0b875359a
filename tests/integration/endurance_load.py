"""The mixed load of `make endurance`: editors that complete code and often change their mind, chats that grow, long prompts
now and then, and requests that are wrong. Each client is a thread that asks, reads, thinks and asks again; what it saw is one
line of `load.seen`, and whatever the API does not promise is one line of `load.errors`.
"""
import http.client
import json
import random
import threading
import time

from vanish import VANISH

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CANCELLED = 0.4  # of the completions
CLIENTS = {"completion": 6, "chat": 5, "long": 1, "odd": 1}
THINK = {"completion": (0.1, 0.6), "chat": (0.3, 1.5), "long": (8, 16), "odd": (1, 3)}  # seconds
WORDS = "queue lease fence hold journal ledger tenant worker gateway prefix page chunk token step lane claim".split()
# Asked again and again by all tenants: the first answer to each is what every later one must be.
CANARIES = [dict(temperature=0), dict(temperature=0.9, seed=11), dict(temperature=0.7, top_p=0.9, seed=3, n=2),
            dict(temperature=0, frequency_penalty=0.5, stop=["\n"])]
# (path, what is wrong, the status, the field that the error names)
WRONG = [(CHAT, {"max_tokens": -3}, 400, "max_tokens"), (CHAT, {"temperature": 9}, 400, "temperature"),
         (CHAT, {"messages": []}, 400, "messages"), (CHAT, {"n": 1000}, 400, "n"), (CHAT, {"model": "none"}, 404, "model"),
         (COMPLETIONS, {"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias.x"), (CHAT, {"stop": 7}, 400, "stop"),
         (CHAT, {"messages": [{"role": "user", "content": "too long " * 9000}]}, 400, "messages")]


class Unexpected(Exception):
    pass


class Load:
    def __init__(self, gateway, tenants, narrow, seed):
        """tenants: of each its key and the models it may call; narrow: the key of one whose limit is met all the time."""
        self.gateway, self.tenants, self.narrow, self.seed = gateway, tenants, narrow, seed
        self.seen, self.errors, self.canaries = [], [], {}
        self.stopping = threading.Event()
        self.threads, self.rounds = [], 0

    def start(self):
        self.stopping.clear()
        self.rounds += 1
        self.threads = [Client(self, kind, i) for kind, n in CLIENTS.items() for i in range(n)]
        for t in self.threads:
            t.start()

    def stop(self):
        """Every client finishes its request and closes its connection."""
        self.stopping.set()
        for t in self.threads:
            t.join(120)
            if t.is_alive():
                self.errors.append(f"{t.kind}: hangs")


class Answer:
    """What came for one request."""

    def __init__(self, status, fields, n):
        self.status, self.id = status, fields.get("x-request-id")
        self.texts, self.finish, self.events = [""] * n, [None] * n, 0
        self.usage = self.error = None

    def take(self, body):
        self.error, self.usage = body.get("error"), body.get("usage") or self.usage
        for choice in body.get("choices", []):
            said = choice.get("delta") or choice.get("message") or {}
            self.texts[choice["index"]] += choice.get("text") or said.get("content") or ""
            self.finish[choice["index"]] = choice.get("finish_reason") or self.finish[choice["index"]]
        self.events += 1


class Client(threading.Thread):
    def __init__(self, load, kind, number):
        super().__init__(daemon=True)
        self.load, self.kind, self.number = load, kind, number
        self.random = random.Random(f"{load.seed}/{load.rounds}/{kind}/{number}")
        self.connection = None
        self.talk = []  # the chat so far

    def run(self):
        while not self.load.stopping.is_set():
            try:
                getattr(self, self.kind)()
            except (OSError, http.client.HTTPException, ValueError, KeyError, Unexpected) as e:
                self.load.errors.append(f"{time.strftime('%H:%M:%S')} {self.kind}: {type(e).__name__}: {e}"[:500])
                self.hang_up()
            self.load.stopping.wait(self.random.uniform(*THINK[self.kind]))
        self.hang_up()

    # ---- the kinds

    def completion(self):
        """A file up to somewhere is sent; the answer is short, or unwanted before it is whole."""
        r, tenant = self.random, self.random.choice(self.load.tenants)
        body = {"model": r.choice(tenant["models"]), "prompt": source_file(tenant["key"], r.randrange(3), r.randrange(3, 40)),
                "max_tokens": r.randrange(8, 48), "stream": True, "temperature": r.choice([0, 0, 0.2]), "seed": r.randrange(99)}
        way = r.random()
        if way < CANCELLED:
            self.ask("cancelled", COMPLETIONS, body | {"max_tokens": 96, "ignore_eos": True}, tenant,
                     outcomes={"ok", "client_gone"}, cut=r.randrange(1, 16))
        elif way < CANCELLED + 0.05:
            self.supersede(body)
        else:
            self.ask("completion", COMPLETIONS, body | r.choice([{}, {"stop": ["\n\n"]}]), tenant)

    def supersede(self, body):
        """A newer request of this editor's session comes while the older one streams."""
        tenant, session = self.load.tenants[self.number], {"x-tiergate-session": f"editor-{self.number}"}
        body = body | {"model": "small"}
        older = self.begin(COMPLETIONS, body | {"max_tokens": 400, "ignore_eos": True}, tenant, session)
        connection, self.connection = self.connection, None
        answer, events = Answer(older.status, fields_of(older), 1), stream_of(older)
        answer.take(next(events))
        self.ask("completion", COMPLETIONS, body, tenant, headers=session)
        for event in events:
            answer.take(event)
        connection.close()
        self.note("superseded", answer, {"superseded"})
        self.must((answer.error or {}).get("code") == "superseded", answer, "the older one goes on")

    def chat(self):
        r, tenant = self.random, self.random.choice(self.load.tenants)
        if r.random() < 0.1:
            return self.canary(tenant)
        if not self.talk or len(self.talk) > 11:
            self.talk, self.tenant, self.model = [{"role": "system", "content": told(r, 40)}], tenant, r.choice(tenant["models"])
        self.talk.append({"role": "user", "content": told(r, r.randrange(5, 60))})
        n = 2 if r.random() < 0.1 else 1
        body = {"model": self.model, "messages": self.talk, "max_tokens": r.randrange(10, 80), "n": n, "stream": r.random() < 0.7}
        body |= r.choice([{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 0.6, "seed": r.randrange(99)},
                          {"temperature": 0, "logprobs": True, "top_logprobs": 3}, {"presence_penalty": 0.4},
                          {"temperature": 0.5, "stop": ["queue", "\n\n"]}, {"logit_bias": {"30": 3, "31": -100}}])
        answer = self.ask("chat", CHAT, body, self.tenant)
        self.talk.append({"role": "assistant", "content": answer.texts[0]})

    def canary(self, tenant):
        at = self.random.randrange(len(CANARIES))
        body = {"model": tenant["models"][0], "max_tokens": 32, "stream": self.random.random() < 0.5,
                "messages": [{"role": "user", "content": f"Write one sentence about a {WORDS[at]}. " * 8}]} | CANARIES[at]
        answer = self.ask("canary", CHAT, body, tenant)
        first = self.load.canaries.setdefault(at, answer.texts)
        self.must(answer.texts == first, answer, f"{answer.texts} is not {first}")

    def long(self):
        r, tenant = self.random, self.random.choice(self.load.tenants)
        body = {"model": r.choice(tenant["models"]), "max_tokens": 16, "temperature": 0, "stream": True,
                "messages": [{"role": "user", "content": told(r, 2100)}]}  # about 3,000 tokens
        self.ask("long", CHAT, body, tenant)
        if r.random() < 0.3:  # once more: most of it is known now
            self.ask("long", CHAT, body, tenant)

    def odd(self):
        """Something wrong, or a request of the tenant that has had its share of this minute."""
        r, tenant = self.random, self.random.choice(self.load.tenants)
        if r.random() < 0.5:
            answer = self.ask("narrow", CHAT, {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
                              self.load.narrow, statuses=(200, 429))
            return self.must(answer.status == 200 or answer.error["code"] == "rate_limit_exceeded", answer, str(answer.error))
        path, wrong, status, field = r.choice(WRONG)
        body = {"model": "small", "max_tokens": 4} | ({"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {})
        answer = self.ask("wrong", path, body | wrong, tenant, statuses=(status,))
        self.must((answer.error or {}).get("param") == field, answer, f"{wrong}: {answer.error}"[:300])

    # ---- one request

    def begin(self, path, body, tenant, headers=None):
        if self.connection is None or self.random.random() < 0.02:
            self.hang_up()
            gateway = self.load.gateway
            self.connection = http.client.HTTPSConnection(gateway.host, gateway.port, context=gateway.tls, timeout=180)
        self.connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {tenant['key']}"} | (headers or {}))
        return self.connection.getresponse()

    def ask(self, kind, path, body, tenant, headers=None, statuses=(200,), outcomes=frozenset({"ok"}), cut=None):
        """cut: so many events are read, then the client vanishes in one of three ways."""
        response = self.begin(path, body, tenant, headers)
        answer = Answer(response.status, fields_of(response), body.get("n", 1) if isinstance(body.get("n", 1), int) else 1)
        if response.status == 200 and body.get("stream"):
            for event in stream_of(response):
                answer.take(event)
                if answer.events == cut:
                    VANISH[self.random.choice(list(VANISH))](self.connection.sock)
                    response.close()
                    self.hang_up()
                    self.note(kind, answer, outcomes)
                    return answer
        else:
            answer.take(json.loads(response.read()))
        self.must(answer.status in statuses, answer, str(answer.error))
        if answer.status == 200:
            self.note(kind, answer, outcomes)
            self.must(not answer.error and all(f in ("stop", "length") for f in answer.finish), answer,
                      f"ended by {answer.finish} {answer.error}")
        else:
            self.note(kind, answer, None)
        return answer

    def note(self, kind, answer, outcomes):
        """outcomes: what its row may say; None: it has none."""
        self.load.seen.append({"kind": kind, "id": answer.id, "status": answer.status, "outcomes": outcomes,
                               "tokens": (answer.usage or {}).get("completion_tokens")})

    def must(self, is_so, answer, why):
        if not is_so:
            raise Unexpected(f"{answer.status} {answer.id} after {answer.events} events: {why}")

    def hang_up(self):
        if self.connection:
            self.connection.close()
        self.connection = None


def fields_of(response):
    return {name.lower(): value for name, value in response.getheaders()}


def stream_of(response):
    """The events of a stream; one that ends without [DONE] or an error is none."""
    while line := response.readline():
        if line == b"data: [DONE]\n":
            response.read()
            return
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            yield event
            if "error" in event:
                response.read()
                return
    raise Unexpected("the stream ended in the middle")


def told(source, n):
    return " ".join(source.choice(WORDS) for _ in range(n))


def source_file(key, number, lines):
    """The first lines of one of a tenant's files."""
    r = random.Random(f"{key}/{number}")
    text = ""
    for i in range(lines):
        a, b, c = (r.choice(WORDS) for _ in range(3))
        text += f"def {a}_{b}({c}, n):\n    return {c}.{b}(n + {i})\n" if i % 4 == 0 else f"{a}_{i} = {b}_{c}({i}, {a!r})\n"
    return text + r.choice(["def ", "class ", "for ", "x = "])
