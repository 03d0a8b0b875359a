"""Whatever ends a request early, at each stage of its life: what the client is told, what the row says, that the hold is
free, and that the worker stops. Clients leave by FIN, by close_notify or by RST; deadlines come; keys are revoked; newer
requests of an editor session take the place of older ones, also on another gateway."""
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from installation import BINARY, Gateway, Installation, metric, wait_for
from vanish import VANISH, is_free, log_lines

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS = 6000  # tokens of an answer that does not end meanwhile
LONG_PROMPT = "many words " * 3000
STEP_TOKENS = 64


@pytest.fixture(scope="module")
def home(model_file, tmp_path_factory):
    settings = {"general.log_level": "debug", "gateway.reactors": "2", "worker.step_tokens": str(STEP_TOKENS)}
    installation = Installation(tmp_path_factory.mktemp("cancel"),
                                *(w for pair in settings.items() for w in ("--set", "=".join(pair)))).start()
    installation.gateway().command("quota", "set", "--tenant", "local", "--tokens-per-day", "1000000000")
    yield installation
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


@pytest.fixture
def gateway(home):
    gateway = home.gateway()
    wait_for(gateway.works, 30, home.said)
    gateway.seen = {r["request_id"] for r in gateway.rows()}
    yield gateway
    wait_for(lambda: gateway.redis("SCARD", f"tg:{{{gateway.tenant()}}}:open") == b"0", 20, "a record is left")
    assert is_free(gateway.held())
    wait_for(lambda: home.metric("worker", "tiergate_worker_sequences") == 0, 20, "the worker goes on")


@contextmanager
def second_gateway(home, name, **environment):
    """Another gateway of the installation, with a data directory of its own: what it says, its process, its log."""
    data, log = home.directory / name, home.directory / f"{name}.log"
    data.mkdir()
    (data / "secrets").symlink_to(home.data / "secrets")
    line = [BINARY, "gateway", "--config", home.data / "run.ini", "--ready-fd", "1", "--set", f"general.data_dir={data}"]
    for key in ("listen", "admin_listen", "ops_listen"):
        line += ["--set", f"gateway.{key}=127.0.0.1:0"]
    with open(log, "ab") as out:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out, text=True,
                                   env=os.environ | environment)
    try:
        said = process.stdout.readline()
        assert said, log.read_text()
        yield Gateway(home.ready() | json.loads(said)), process, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def send(gateway, body, path=CHAT, key=None, **headers):
    """A request whose answer nobody waits for yet: its connection."""
    connection = gateway.connect()
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {key or gateway.key}"} |
                       {name.replace("_", "-"): value for name, value in headers.items()})
    return connection


def answer(connection):
    """(status, headers, body) of an answer that is not streamed."""
    got = connection.getresponse()
    body = json.loads(got.read())
    connection.close()
    return got.status, {name.lower(): value for name, value in got.getheaders()}, body


def endless(gateway, **more):
    return gateway.chat(max_tokens=ENDLESS, ignore_eos=True, temperature=0, **more)


def count(home, state):
    return home.metric("gateway", f'tiergate_requests{{state="{state}"}}')


def wait_state(home, state, n=1):
    wait_for(lambda: count(home, state) == n, 20, lambda: f"{count(home, state)} are {state}")


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def access(home, request_id):
    """The line http.access of a request."""
    return wait_for(lambda: log_lines(home.gateway_log, "http.access").get(request_id), 10, f"no line of {request_id}")


def why_text(gateway, request_id):
    """What `tiergate why` says to people."""
    line = [BINARY, "why", request_id, "--config", f"{gateway.ready['data_dir']}/run.ini"]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def new_row(gateway, outcome):
    """The row of this test with this outcome."""
    def find():
        return [r for r in gateway.rows() if r["request_id"] not in gateway.seen and r["outcome"] == outcome]
    return wait_for(find, 10, lambda: f"no {outcome} among {gateway.rows()[:3]}")[0]


def assert_unrun(home, gateway, row):
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    assert gateway.works()  # had it stood in the queue, the worker would have met it by now
    assert row["request_id"] not in log_lines(home.worker_log, "run.end")


def made(home, request_id):
    """What the worker says that it made for a request, once it has let go of it."""
    return wait_for(lambda: log_lines(home.worker_log, "run.end").get(request_id), 10, "the worker goes on")["made"]


def make_key(gateway):
    return gateway.command("key", "create", "--tenant", "local", "--user", "ann", "--create-missing")


# ---- the client leaves


@pytest.mark.parametrize("how", VANISH)
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_its_stream_pays_what_it_got(home, gateway, how, n):
    stream = gateway.stream(max_tokens=2000, n=n)
    stream.read(3 * n)
    VANISH[how](stream.connection.sock)
    row = gateway.row(stream.id)
    assert row["outcome"] == "client_gone"
    assert stream.tokens() <= row["completion_tokens"] <= made(home, stream.id) < 2000 * n
    line = access(home, stream.id)
    assert (line["status"], line["outcome"]) == (499, "client_gone")


@pytest.mark.parametrize("how", VANISH)
def test_a_client_that_leaves_while_nothing_is_streamed_stops_the_worker(home, gateway, how):
    connection = send(gateway, endless(gateway))
    wait_state(home, "running")
    VANISH[how](connection.sock)
    row = new_row(gateway, "client_gone")
    assert row["completion_tokens"] == 0  # nothing was handed
    assert made(home, row["request_id"]) < ENDLESS
    assert access(home, row["request_id"])["status"] == 499


@pytest.mark.parametrize("how", VANISH)
def test_a_client_that_leaves_while_it_waits_leaves_the_queue_unrun(home, gateway, how):
    with stopped(home.pids("worker")[0]):
        connection = send(gateway, endless(gateway, stream=True))
        wait_state(home, "queued")
        VANISH[how](connection.sock)
        row = new_row(gateway, "client_gone")
    assert_unrun(home, gateway, row)


def test_a_client_that_leaves_during_its_hold_leaves_no_row_and_no_hold(home, gateway):
    with stopped(home.ready()["pids"]["redis"]):
        connection = send(gateway, endless(gateway))
        wait_state(home, "holding")
        VANISH["RST"](connection.sock)
        wait_for(lambda: home.metric("gateway", "tiergate_http_connections") == 0, 10)
    wait_state(home, "holding", 0)
    gateway.row(gateway.post(CHAT, gateway.chat())[1]["x-request-id"])
    assert {r["outcome"] for r in gateway.rows() if r["request_id"] not in gateway.seen} == {"ok"}


def test_a_client_that_leaves_during_a_long_prompt_stops_the_worker_between_chunks(home, gateway):
    tokens = gateway.post("/v1/tokenize", {"model": gateway.model, "prompt": LONG_PROMPT})[2]["count"]
    before = home.metric("worker", "tiergate_worker_steps_total")
    body = gateway.chat(stream=True, messages=[{"role": "user", "content": LONG_PROMPT}])
    connection = send(gateway, body)
    wait_for(lambda: home.metric("worker", "tiergate_worker_steps_total") > before + 2)
    VANISH["FIN"](connection.sock)
    row = new_row(gateway, "client_gone")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    assert made(home, row["request_id"]) == 0
    assert home.metric("worker", "tiergate_worker_steps_total") - before < tokens / STEP_TOKENS


def send_part(home, gateway, headers, body):
    """The head of a chat and a part of its body, once the gateway has read the head: the connection."""
    connection = gateway.connect()
    connection.putrequest("POST", CHAT)
    for name, value in ({"Authorization": f"Bearer {gateway.key}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    wait_for(lambda: home.metric("gateway", "tiergate_http_exchanges") == 1, 20, "its head is not read")
    return connection


@pytest.mark.parametrize("how", VANISH)
def test_a_client_that_leaves_in_its_body_is_logged_and_leaves_no_row(home, gateway, how):
    before = log_lines(home.gateway_log, "http.access").keys()
    VANISH[how](send_part(home, gateway, {"Content-Length": "1000"}, b"{").sock)
    new = wait_for(lambda: [line for request, line in log_lines(home.gateway_log, "http.access").items()
                            if request not in before], 10, "no line")
    assert [(line["route"], line["status"], line["outcome"]) for line in new] == [("chat", 499, "client_gone")]
    gateway.row(gateway.post(CHAT, gateway.chat())[1]["x-request-id"])
    assert {r["outcome"] for r in gateway.rows() if r["request_id"] not in gateway.seen} == {"ok"}


def test_a_body_that_the_transport_refuses_is_logged_as_it_was_answered(home, gateway):
    gone = home.metric("gateway", "tiergate_http_gone_total")
    connection = send_part(home, gateway, {"Transfer-Encoding": "chunked"}, b"1\r\n{\r\n")
    connection.send(b"no size\r\n")
    status, headers, _ = answer(connection)
    line = access(home, headers["x-request-id"])
    assert status == 400 and (line["route"], line["status"], line["outcome"]) == ("chat", 400, "refused")
    assert home.metric("gateway", "tiergate_http_gone_total") == gone


# ---- the deadline


def test_a_deadline_in_the_queue_is_504_and_runs_nothing(home, gateway):
    with stopped(home.pids("worker")[0]):
        status, headers, body = answer(send(gateway, endless(gateway), x_tiergate_deadline_ms="300"))
        row = new_row(gateway, "deadline")
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "deadline_exceeded", "false")
    assert_unrun(home, gateway, row)
    line = access(home, row["request_id"])
    assert (line["status"], line["outcome"]) == (504, "deadline")


def test_a_deadline_in_the_middle_of_a_stream_is_an_error_event(home, gateway):
    stream = gateway.stream(headers={"x-tiergate-deadline-ms": "1500"}, max_tokens=ENDLESS)
    last = stream.rest()[-1]
    assert last["error"]["code"] == "deadline_exceeded" and "[DONE]" not in stream.events
    row = gateway.row(stream.id)
    assert row["outcome"] == "deadline" and row["completion_tokens"] == stream.tokens() <= made(home, stream.id) < ENDLESS
    line = access(home, stream.id)
    assert (line["status"], line["outcome"]) == (200, "deadline")


# ---- the key is revoked


def test_a_key_revoked_while_its_request_waits_is_401_and_runs_nothing(home, gateway):
    key = make_key(gateway)
    with stopped(home.pids("worker")[0]):
        connection = send(gateway, endless(gateway), key=key["key"])
        wait_state(home, "queued")
        gateway.command("key", "revoke", key["public_id"])
        status, _, body = answer(connection)
        row = new_row(gateway, "revoked")
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert_unrun(home, gateway, row)
    line = access(home, row["request_id"])
    assert (line["status"], line["outcome"]) == (401, "revoked")


def test_a_key_revoked_in_the_middle_stops_the_worker(home, gateway):
    key = make_key(gateway)
    stream = gateway.stream(key=key["key"], max_tokens=ENDLESS)
    whole = send(gateway, endless(gateway), key=key["key"])
    wait_state(home, "running", 2)
    gateway.command("key", "revoke", key["public_id"])
    assert answer(whole)[0] == 401
    assert stream.rest()[-1]["error"]["code"] == "invalid_api_key"
    row = gateway.row(stream.id)
    assert row["outcome"] == "revoked" and row["completion_tokens"] == stream.tokens() <= made(home, stream.id) < ENDLESS
    assert access(home, stream.id)["outcome"] == "revoked"


def test_a_key_revoked_while_its_prompt_is_read_starts_nothing(home, gateway):
    key = make_key(gateway)
    with second_gateway(home, "slow", TIERGATE_FAILPOINTS="encode.before=sleep:1500") as (other, _, _):
        body = other.chat(messages=[{"role": "user", "content": LONG_PROMPT}])
        connection = send(other, body, key=key["key"])
        wait_for(lambda: metric(other.ready["ops_url"], "tiergate_http_exchanges") == 1, 10)
        time.sleep(0.2)  # its key is checked by now; its prompt is read for so long that the test does not depend on it
        gateway.command("key", "revoke", key["public_id"])
        status, _, told = answer(connection)
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    assert {r["outcome"] for r in gateway.rows() if r["request_id"] not in gateway.seen} <= {"ok"}


# ---- a newer request of the editor session


def test_a_newer_request_ends_the_older_one_of_its_session_in_the_queue(home, gateway):
    with stopped(home.pids("worker")[0]):
        older = send(gateway, endless(gateway), x_tiergate_session="queue")
        wait_state(home, "queued")
        newer = send(gateway, gateway.chat(), x_tiergate_session="queue")
        status, headers, body = answer(older)
        row = new_row(gateway, "superseded")
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (409, "superseded", "false")
    assert answer(newer)[0] == 200
    assert_unrun(home, gateway, row)
    line = access(home, row["request_id"])
    assert (line["status"], line["outcome"]) == (409, "superseded")


def test_a_newer_request_ends_a_stream_of_its_session_with_an_error_event(home, gateway):
    older = gateway.stream(headers={"x-tiergate-session": "stream"}, max_tokens=ENDLESS)
    older.read(3)
    newer = send(gateway, gateway.chat(), x_tiergate_session="stream")
    last = older.rest()[-1]
    assert last["error"]["code"] == "superseded" and "[DONE]" not in older.events
    assert answer(newer)[0] == 200
    row = gateway.row(older.id)
    assert row["outcome"] == "superseded" and row["completion_tokens"] == older.tokens() <= made(home, older.id) < ENDLESS
    line = access(home, older.id)
    assert (line["status"], line["outcome"]) == (200, "superseded")


def test_why_says_that_a_request_was_superseded(home, gateway):
    """Before it ran, and in the middle of its stream."""
    with stopped(home.pids("worker")[0]):
        older = send(gateway, endless(gateway), x_tiergate_session="why")
        wait_state(home, "queued")
        newer = send(gateway, gateway.chat(), x_tiergate_session="why")
        waited = answer(older)[1]["x-request-id"]
    assert answer(newer)[0] == 200
    stream = gateway.stream(headers={"x-tiergate-session": "why"}, max_tokens=ENDLESS)
    stream.read(3)
    assert answer(send(gateway, gateway.chat(), x_tiergate_session="why"))[0] == 200
    stream.rest()
    for request_id in (waited, stream.id):
        row, why = gateway.row(request_id), gateway.command("why", request_id)
        assert why["state"] == "recorded" and why["outcome"] == "superseded" and why["held_tokens"] > ENDLESS
        assert (why["prompt_tokens"], why["completion_tokens"]) == (row["prompt_tokens"], row["completion_tokens"])
        assert (why["first_token_ms"] is None) == (why["completion_tokens"] == why["steps"] == 0) == (request_id == waited)
        said = why_text(gateway, request_id)
        assert f"{request_id}: superseded\n" in said and "ms after acceptance: superseded\n" in said
        assert ("none was made" in said) == (request_id == waited)


def test_why_tells_of_a_request_that_is_held_and_not_accepted(home, gateway):
    """The other gateway stands still between the hold and the line in its journal."""
    open_key = f"tg:{{{gateway.tenant()}}}:open"
    with second_gateway(home, "holder", TIERGATE_FAILPOINTS="hold.after=stop@1") as (other, process, _):
        try:
            connection = send(other, other.chat(max_tokens=9))
            request_id = wait_for(lambda: gateway.redis("SMEMBERS", open_key).decode(), 20, "nothing is held")
            why, said = gateway.command("why", request_id), why_text(gateway, request_id)
        finally:
            process.send_signal(signal.SIGCONT)
        assert answer(connection)[1]["x-request-id"] == request_id
    assert (why["state"], why["granted"], why["sent_tokens"], why["prefilled"]) == ("held", 9, 0, False)
    assert why["held_tokens"] == why["prompt_tokens"] + 9
    assert f"{request_id}: held, not accepted; released without a row" in said


def test_a_burst_of_one_session_leaves_the_newest_alone(home, gateway):
    """On both reactors: a connection each."""
    def superseded():
        return home.metric("gateway", 'tiergate_requests_total{route="chat",code="409"}')

    before = superseded()
    burst = [send(gateway, endless(gateway), x_tiergate_session="burst") for _ in range(8)]
    wait_for(lambda: superseded() == before + 7, 20, "not all but one were superseded")
    last = send(gateway, gateway.chat(), x_tiergate_session="burst")
    assert answer(last)[0] == 200
    assert {answer(older)[0] for older in burst} == {409}


def test_an_answer_that_was_complete_stays_so(gateway):
    first = answer(send(gateway, gateway.chat(), x_tiergate_session="done"))
    second = answer(send(gateway, gateway.chat(), x_tiergate_session="done"))
    assert (first[0], second[0]) == (200, 200)
    assert gateway.row(first[1]["x-request-id"])["outcome"] == "ok"


def test_a_completion_does_not_end_a_chat_of_its_session_nor_another_keys(gateway):
    key = make_key(gateway)
    chat = gateway.stream(headers={"x-tiergate-session": "kinds"}, max_tokens=150)
    other = gateway.stream(key=key["key"], headers={"x-tiergate-session": "kinds"}, max_tokens=150)
    completion = {"model": gateway.model, "prompt": "def add(a, b):", "max_tokens": 4}
    assert answer(send(gateway, completion, COMPLETIONS, x_tiergate_session="kinds"))[0] == 200
    assert chat.rest()[-1] == other.rest()[-1] == "[DONE]"


def two_gateways(here, there):
    older = here.stream(headers={"x-tiergate-session": "two"}, max_tokens=ENDLESS)
    older.read(3)
    assert answer(send(there, there.chat(), x_tiergate_session="two"))[0] == 200
    assert older.rest()[-1]["error"]["code"] == "superseded"
    row = there.row(older.id)
    assert row["outcome"] == "superseded" and row["completion_tokens"] == older.tokens()


def test_gateways_tell_each_other_of_newer_requests(home, gateway):
    with second_gateway(home, "teller") as (other, _, _):
        two_gateways(gateway, other)
        two_gateways(other, gateway)


def test_a_client_library_does_not_repeat_what_was_superseded(gateway):
    """It would end the newer one."""
    import openai
    client = gateway.client(max_retries=2, default_headers={"x-tiergate-session": "library"})
    older = client.chat.completions.create(**gateway.chat(max_tokens=ENDLESS), extra_body={"ignore_eos": True}, stream=True)
    next(iter(older))
    assert client.chat.completions.create(**gateway.chat()).choices
    with pytest.raises(openai.APIError) as told:
        for _ in older:
            pass
    assert told.value.code == "superseded"
    assert len([r for r in gateway.rows() if r["request_id"] not in gateway.seen and r["outcome"] == "superseded"]) == 1


@pytest.mark.parametrize("value", ["", "s" * 129, "two words", "tab\there"], ids=["empty", "long", "space", "tab"])
def test_a_bad_session_names_the_header(gateway, value):
    status, _, body = answer(send(gateway, gateway.chat(), x_tiergate_session=value))
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_request", "x-tiergate-session")


def test_a_session_stands_for_one_prompt(gateway):
    body = {"model": gateway.model, "prompt": ["a", "b"], "max_tokens": 2}
    status, _, got = answer(send(gateway, body, COMPLETIONS, x_tiergate_session="several"))
    assert (status, got["error"]["code"], got["error"]["param"]) == (400, "unsupported_parameter", "x-tiergate-session")


# ---- the gateway itself goes


def test_a_gateway_that_ends_at_once_does_not_say_that_its_clients_left(home, gateway):
    with second_gateway(home, "ender") as (other, process, log):
        stream = other.stream(max_tokens=ENDLESS)
        whole = send(other, endless(other))
        wait_for(lambda: home.metric("worker", "tiergate_worker_sequences") == 2, 20)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: '"gateway.drain"' in log.read_text(), 10)
        process.send_signal(signal.SIGTERM)
        try:
            stream.rest()
        except OSError:
            pass
        process.wait(40)
        lines = wait_for(lambda: (x := list(log_lines(log, "http.access").values())) and len(x) == 2 and x, 10)
        assert {(x["status"], x["outcome"]) for x in lines} == {(200, "gateway_lost"), (503, "gateway_lost")}
        whole.close()
    row = gateway.row(stream.id, 40)
    assert "[DONE]" not in stream.events
    assert row["outcome"] == "gateway_lost" and stream.tokens() <= row["completion_tokens"]


# ---- after all of that


def test_the_ledger_adds_up_after_all_of_that(home, gateway):
    done = subprocess.run([BINARY, "usage", "verify", "--data", home.data], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
