"""A tenant's own adapters: imported from what PEFT saves, called by name, seen and found by nobody else."""
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from installation import BINARY, Installation, wait_for
from lora_file import write_peft

TEXT = [{"role": "user", "content": "Write a haiku about queues. " * 30}]


class Place:
    def __init__(self, gateway, directory):
        self.gateway, self.directory = gateway, directory
        self.options = ["--config", f"{gateway.ready['data_dir']}/run.ini"]
        self.keys = {"local": gateway.key}

    def run(self, *words, fails=False):
        done = subprocess.run([BINARY, *map(str, words), *self.options], capture_output=True, text=True, timeout=120)
        assert (done.returncode != 0) == fails, done
        return done.stderr if fails else done.stdout

    def tenant(self, name):
        out = self.run("key", "create", "--tenant", name, "--user", "u", "--create-missing")
        self.keys[name] = out.strip()

    def adapter(self, tenant, name, seed):
        path = write_peft(self.directory / f"{tenant}-{name}-{seed}", seed)
        return json.loads(self.run("adapter", "import", path, "--tenant", tenant, "--model", "small", "--name", name, "--json"))

    def ask(self, tenant, model, expect=200, **more):
        body = {"model": model, "messages": TEXT, "max_tokens": 16, "temperature": 0, "ignore_eos": True} | more
        status, headers, answer = self.gateway.request("POST", "/v1/chat/completions", body, key=self.keys[tenant])
        assert status == expect, answer
        if expect != 200:
            return answer["error"]
        row = self.gateway.row(headers["x-request-id"])
        return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"], row


@pytest.fixture(scope="module")
def place(model_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    installation = Installation(directory / "site").start()
    gateway = installation.gateway()
    wait_for(gateway.works, 30, installation.said)
    place = Place(gateway, directory)
    place.tenant("acme")
    yield place
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


def test_an_adapter_is_called_by_its_name_and_stands_in_the_ledger(place):
    made = place.adapter("local", "reviewer", 1)
    wait_for(lambda: "reviewer" in [m["id"] for m in place.gateway.request("GET", "/v1/models")[2]["data"]])
    text, _, row = place.ask("local", "reviewer")
    plain, _, _ = place.ask("local", "small")
    assert text != plain
    assert row["adapter"] == made["id"]
    assert made["id"].startswith("reviewer-") and made["sha256"].startswith(made["id"].split("-")[1])
    listed = json.loads(place.run("adapter", "ls", "--json"))
    assert [(a["id"], a["tenant"], a["model"], a["called_by"]) for a in listed] == [(made["id"], "local", "small", "reviewer")]


def test_nobody_else_sees_or_uses_it(place):
    place.adapter("local", "private", 2)
    wait_for(lambda: place.gateway.request("GET", "/v1/models/private")[0] == 200)
    assert place.ask("acme", "private", expect=404)["code"] == "model_not_found"
    place.adapter("acme", "private", 3)  # a name of its own
    wait_for(lambda: place.gateway.request("GET", "/v1/models/private", key=place.keys["acme"])[0] == 200)
    ours, _, _ = place.ask("local", "private")
    theirs, _, _ = place.ask("acme", "private")
    assert ours != theirs


def test_a_prefix_is_found_under_the_same_adapter_only(place):
    for name, seed in (("first", 4), ("second", 5)):
        place.adapter("local", name, seed)
        wait_for(lambda name=name: place.gateway.request("GET", f"/v1/models/{name}")[0] == 200)
    text, cached, _ = place.ask("local", "first")
    assert cached == 0
    assert place.ask("local", "second")[1] == 0
    again, cached, _ = place.ask("local", "first")
    assert cached > 100 and again == text


def test_mixed_in_one_batch_each_gets_what_it_gets_alone(place):
    place.adapter("local", "mixed", 6)
    wait_for(lambda: place.gateway.request("GET", "/v1/models/mixed")[0] == 200)
    alone = {model: place.ask("local", model, max_tokens=40)[0] for model in ("mixed", "small")}
    streams = [(model, place.gateway.stream(model=model, messages=TEXT, max_tokens=40)) for model in ("mixed", "small") * 3]
    for model, stream in streams:
        stream.rest()
        assert stream.text() == alone[model]


def test_imported_again_under_its_name_it_is_another_one(place):
    first = place.adapter("local", "again", 7)
    wait_for(lambda: place.gateway.request("GET", "/v1/models/again")[0] == 200)
    text, _, _ = place.ask("local", "again")
    second = place.adapter("local", "again", 8)
    assert second["id"] != first["id"]
    wait_for(lambda: place.ask("local", "again")[2]["adapter"] == second["id"])
    other, _, _ = place.ask("local", "again")
    assert other != text
    assert "--unassign" in place.run("adapter", "rm", second["id"], "--tenant", "local", fails=True)
    place.run("adapter", "rm", first["id"], "--tenant", "local")
    place.run("adapter", "rm", second["id"], "--tenant", "local", "--unassign")
    wait_for(lambda: place.gateway.request("GET", "/v1/models/again")[0] == 404)


def test_an_adapter_whose_file_is_gone_is_an_error_and_never_the_base_model(place):
    made = place.adapter("local", "lost", 9)
    wait_for(lambda: place.gateway.request("GET", "/v1/models/lost")[0] == 200)
    files = [os.path.join(where, name) for where, _, names in os.walk(place.gateway.ready["data_dir"] + "/adapters")
             for name in names if name.startswith(made["id"])]
    os.unlink(files[0])
    assert place.ask("local", "lost", expect=500)["type"] == "server_error"


def test_others_are_answered_while_an_adapter_is_read(place):
    """Its file is a FIFO here, which is read for as long as the test likes."""
    made = place.adapter("local", "slow", 12)
    wait_for(lambda: place.gateway.request("GET", "/v1/models/slow")[0] == 200)
    path = next(os.path.join(where, name) for where, _, names in os.walk(place.gateway.ready["data_dir"] + "/adapters")
                for name in names if name.startswith(made["id"]))
    with open(path, "rb") as file:
        content = file.read()
    os.unlink(path)
    os.mkfifo(path)
    known = {row["request_id"] for row in place.gateway.rows()}
    gone = place.gateway.connect()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(place.ask, "local", "slow") for _ in range(2)]
        gone.request("POST", "/v1/chat/completions", json.dumps(place.gateway.chat(model="slow", messages=TEXT)),
                     {"Authorization": f"Bearer {place.gateway.key}"})
        with open(path, "wb") as file:  # from here on it is being read
            plain = place.ask("local", "small")[0]
            gone.close()
            row = wait_for(lambda: [r for r in place.gateway.rows() if r["request_id"] not in known and r["outcome"] == "client_gone"])[0]
            assert row["completion_tokens"] == 0
            assert not any(w.done() for w in waiting)
            file.write(content)
        texts = [w.result()[0] for w in waiting]
    assert texts[0] == texts[1] != plain


@pytest.mark.parametrize("config, words", [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"),
                                           ({"lora_alpha": None}, "lora_alpha"), ({"peft_type": "IA3"}, "peft_type")])
def test_what_cannot_be_served_as_trained_is_not_imported(place, tmp_path, config, words):
    path = write_peft(tmp_path / "x", 1, **config)
    assert words in place.run("adapter", "import", path, "--tenant", "local", "--model", "small", "--name", "x", fails=True)


@pytest.mark.parametrize("options, words", [(["--model", "small", "--name", "a b"], "--name"), (["--model", "small"], "--name"),
                                            (["--name", "x"], "--model"), (["--model", "none", "--name", "x"], "none"),
                                            (["--model", "small", "--name", "small"], "'small' already")])
def test_a_wrong_command_line_names_the_option(place, tmp_path, options, words):
    path = write_peft(tmp_path / "x", 1)
    assert words in place.run("adapter", "import", path, "--tenant", "local", *options, fails=True)
    assert "--tenant" in place.run("adapter", "import", path, "--model", "small", "--name", "x", fails=True)
    assert "nobody" in place.run("adapter", "import", path, "--tenant", "nobody", "--model", "small", "--name", "x", fails=True)
