"""`tiergate up` as a newcomer and a script meet it: starting, supervising, stopping, and the commands beside it."""
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from installation import BINARY, ROOT, STOP_SECONDS, Installation, wait_for

KINDS = ("gateway", "worker", "redis", "postgres")


@pytest.fixture(scope="module")
def up(model_file, tmp_path_factory):
    """One installation for the tests that leave it running."""
    installation = Installation(tmp_path_factory.mktemp("up")).start()
    yield installation
    installation.kill()


def run(*words, check=False):
    return subprocess.run([BINARY, *words], capture_output=True, text=True, check=check, timeout=60)


# ---- what it leaves for scripts and people


def test_the_ready_file_is_private_and_complete(up):
    mode = stat.S_IMODE(up.ready_file.stat().st_mode)
    ready = up.ready()
    assert mode == 0o600
    assert set(ready) == {"base_url", "admin_url", "ops_url", "api_key", "admin_key", "ca_file", "models", "workers", "pids",
                          "data_dir"}
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+/v1", ready["base_url"])
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+", ready["admin_url"])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["ops_url"])
    for key in ("api_key", "admin_key"):
        assert re.fullmatch(r"tg_live_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}", ready[key])
    assert ready["api_key"] != ready["admin_key"]
    assert Path(ready["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert ready["models"] == ["small"]
    assert {k: type(v) for k, v in ready["pids"].items()} == {"gateway": list, "worker": list, "redis": int, "postgres": int}
    alive = up.processes()
    assert {pid for kind in KINDS for pid in up.pids(kind)} <= set(alive)


def test_the_line_it_prints_works_as_pasted(up):
    said = up.log.read_text()
    line = said[said.index("  curl "):said.index("\n\nCtrl-C")]
    pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    answer = json.loads(pasted.stdout)
    assert answer["choices"][0]["message"]["content"]


def test_secrets_are_readable_by_nobody_else(up):
    for path in (up.data / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(up.data.stat().st_mode) & 0o077 == 0
    key = (up.data / "secrets" / "local-api-key").read_text()
    assert key == up.ready()["api_key"]
    for pid, line in up.processes().items():
        assert key not in line, pid


# ---- the commands beside it


def test_a_key_is_created_listed_used_and_revoked(up):
    gateway = up.gateway()
    made = gateway.command("key", "create", "--tenant", "local", "--user", "ann", "--name", "laptop", "--create-missing")
    assert gateway.request("GET", "/v1/models", key=made["key"])[0] == 200
    listed = {k["public_id"]: k for k in gateway.command("key", "list")}
    assert listed[made["public_id"]]["name"] == "laptop" and "key" not in listed[made["public_id"]]
    plain = run("key", "list", "--data", up.data, check=True).stdout
    assert made["public_id"] in plain and made["key"] not in plain
    assert "within 2 s" in run("key", "revoke", made["public_id"], "--data", up.data, check=True).stdout
    wait_for(lambda: gateway.request("GET", "/v1/models", key=made["key"])[0] == 401, 2)
    revoked = {k["public_id"]: k for k in gateway.command("key", "list", "--tenant", "local")}[made["public_id"]]
    assert revoked["revoked_at"]


@pytest.mark.parametrize("words, status, says", [
    (["key", "create"], 2, "--tenant"),
    (["key", "create", "--tenant", "Not A Name", "--user", "x", "--create-missing"], 2, "tenant's name"),
    (["key", "create", "--tenant", "nobody", "--user", "x"], 1, "no tenant of this name"),
    (["key", "create", "--tenant", "local", "--user", "x", "--roles", "god"], 2, "--roles is"),
    (["key", "create", "--tenant", "local", "--user", "x", "--expires-days", "1.5"], 2, "whole number"),
    (["key", "revoke", "nothing1"], 1, "no key with this id"),
    (["key", "revoke"], 2, "needs the key's id"),
    (["key", "destroy"], 2, "there is no `key destroy`"),
    (["usage", "--days", "0"], 2, "--days is"),
    (["usage", "--unknown"], 2, "unknown option --unknown"),
])
def test_a_wrong_command_is_one_clear_line(up, words, status, says):
    done = run(*words, "--data", up.data)
    assert done.returncode == status
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_command_without_an_installation_says_so(tmp_path):
    done = run("usage", "--data", tmp_path)
    assert done.returncode == 2 and "was `tiergate up` started with this --data?" in done.stderr


def test_usage_sums_by_day_and_model(up):
    gateway = up.gateway()
    _, headers, _ = gateway.post("/v1/chat/completions", gateway.chat())
    gateway.row(headers["x-request-id"])
    rows, sums = gateway.rows(), gateway.command("usage")
    for kind in ("prompt_tokens", "completion_tokens"):
        assert sum(r[kind] for r in rows) == sum(s[kind] for s in sums)
    assert sum(s["requests"] for s in sums) == len(rows)
    assert "completion_tokens" in run("usage", "--data", up.data, check=True).stdout
    assert gateway.command("usage", "--tenant", "nobody") == []


def test_migrate_again_changes_nothing(up):
    assert run("migrate", "--data", up.data, check=True).stdout.startswith("0 migrations applied")


def test_check_config_shows_what_is_in_force_or_what_is_wrong(up, tmp_path):
    shown = run("check-config", "--data", up.data, check=True).stdout
    assert up.gateway().ready["base_url"].rsplit(":", 1)[1].split("/")[0] in shown
    again = tmp_path / "again.ini"
    again.write_text(shown)
    assert run("check-config", "--config", again, check=True).stdout
    again.write_text("[gateway]\nlisten = nowhere\n")
    done = run("check-config", "--config", again)
    assert done.returncode == 2 and "again.ini:2" in done.stderr and "listen" in done.stderr
    assert "[worker]" in run("check-config", "--defaults", check=True).stdout


def test_every_command_has_help():
    commands = re.findall(r"^  tiergate ([\w-]+)", run("help", check=True).stdout, re.M)
    assert {"up", "gateway", "worker", "migrate", "check-config", "key", "usage", "model"} <= set(commands)
    for command in commands:
        done = run(command, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"tiergate {command}"), command
    assert run("nonsense").returncode == 2
    assert run().returncode == 2


# ---- model check


def test_a_good_model_is_summed_up(model_file):
    done = run("model", "check", model_file, check=True)
    assert "llama" in done.stdout and done.stderr == ""


def test_every_malformed_model_is_one_clear_line(tmp_path):
    writer = ROOT / "build" / "tests" / "malformed_files"
    if not writer.exists():
        pytest.skip("build/tests/malformed_files is not built (make integration builds it)")
    kinds = subprocess.run([writer, tmp_path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(kinds) >= 200
    for kind in kinds:
        name, expected = kind.split("\t")
        path = tmp_path / f"{name}.gguf"
        if path.stat().st_size < 24:  # shorter than the header: no magic is looked at
            expected = "not a GGUF file"
        done = run("model", "check", path)
        assert done.returncode == 1 and done.stdout == "", name
        assert done.stderr.count("\n") == 1 and expected in done.stderr, (name, done.stderr)


def test_a_model_that_is_no_file_is_one_clear_line(tmp_path):
    for path in (tmp_path / "missing.gguf", tmp_path, "/dev/null", BINARY):
        done = run("model", "check", path)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr


# ---- supervision


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_is_killed_comes_back(up, kind):
    old = up.pids(kind)[0]
    url = up.ready()["base_url"]
    os.kill(old, signal.SIGKILL)
    up.wait_new_pid(kind, old)
    assert up.ready()["base_url"] == url  # clients need no new address
    assert "was killed by signal 9" in up.log.read_text()


def test_a_second_up_on_the_same_data_is_refused(up):
    done = run("up", "--data", up.data, "--listen", "127.0.0.1:0", "--model", f"small={ROOT / 'Makefile'}")
    assert done.returncode == 1 and "another `tiergate up` uses" in done.stderr
    assert up.gateway().works()


def test_ctrl_c_ends_everything_and_the_next_start_keeps_data_and_keys(up):
    before, rows = up.ready(), up.gateway().rows()
    assert rows
    assert up.stop() == 0
    assert not up.ready_file.exists()
    assert up.log.read_text().endswith("tiergate: stopped\n")
    up.start()
    after = up.ready()
    for key in ("api_key", "admin_key", "ca_file"):
        assert after[key] == before[key]
    assert up.gateway().rows()[-len(rows):] == rows  # the last one may have come while it stopped
    assert up.gateway().works()


def test_ctrl_c_lets_open_streams_finish(up):
    stream = up.gateway().stream(max_tokens=80)
    stream.read(3)
    up.up.send_signal(signal.SIGINT)
    assert stream.rest()[-1] == "[DONE]" and stream.tokens() == 80
    assert up.up.wait(STOP_SECONDS) == 0
    assert up.processes() == {}
    up.start()
    assert up.gateway().row(stream.id)["completion_tokens"] == 80


def test_a_second_ctrl_c_ends_open_streams_at_once(up):
    stream = up.gateway().stream(max_tokens=3000)
    stream.read(3)
    before = len(up.log.read_text())  # of the same log: an earlier stop may have said it too
    up.up.send_signal(signal.SIGINT)
    wait_for(lambda: "gateway finishes what is open; Ctrl-C again ends it at once" in up.log.read_text()[before:], 10)
    assert up.stop() == 0
    up.start()
    row = up.gateway().row(stream.id, 40)
    assert row["outcome"] != "ok" and row["completion_tokens"] < 3000


def test_kill_9_of_up_leaves_nobody_and_it_starts_again_at_once(up):
    up.up.kill()
    up.up.wait()
    up.ready_file.unlink()
    up.start()  # waits for what is left of the last one
    assert up.gateway().works()
    up.up.kill()
    up.up.wait()
    wait_for(lambda: up.processes() == {}, STOP_SECONDS, lambda: f"left: {up.processes()}")
    up.ready_file.unlink()
    up.start()
    assert up.stop(signal.SIGTERM) == 0


# ---- places


def test_parents_that_others_may_not_enter_do_not_matter(install, tmp_path):
    deep = tmp_path / "closed" / "deeper"
    deep.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    installation = install(data=deep / "data").start()
    assert installation.gateway().works()
    assert installation.stop() == 0


def test_a_long_path_gets_short_sockets_that_are_gone_in_the_end(install, tmp_path):
    long = tmp_path / ("long" * 20)
    data = long / ("x" * (180 - len(str(long)) - 1))
    sockets = set(Path("/tmp").glob("tiergate-*"))
    installation = install(data=data).start()
    assert installation.gateway().works()
    assert installation.stop() == 0
    assert {p for p in Path("/tmp").glob("tiergate-*") if re.fullmatch(r"tiergate-\w{6}", p.name)} <= sockets


def test_a_path_that_is_too_long_is_said_before_anything_is_made(tmp_path, model_file):
    data = tmp_path / ("x" * 200) / ("y" * 100)
    done = run("up", "--data", data, "--model", f"small={model_file}")
    assert done.returncode == 2 and "a path of at most 192 characters" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- what cannot start ends it with the reason


def test_a_port_in_use_ends_it_with_the_reason(install):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        installation = install(listen=f"127.0.0.1:{port}")
        status, said = installation.begin().wait_failure()
    assert status == 1
    reason = said[said.index("tiergate up: "):].splitlines()[0]
    assert "address already in use" in reason and str(port) in reason
    assert installation.processes() == {}


def test_a_broken_model_ends_it_with_the_reason(install, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)
    installation = install(model=broken)
    status, said = installation.begin().wait_failure()
    assert status == 1
    assert "broken.gguf: " in said[said.index("tiergate up: worker-small exited with status 1"):].splitlines()[0]
    assert installation.processes() == {}


@pytest.mark.parametrize("model, says", [("nosuch.gguf", "no such model file"), ("", "--model takes NAME=FILE.gguf")])
def test_a_model_that_is_not_there_is_said_at_once(tmp_path, model, says):
    done = run("up", "--data", tmp_path / "data", "--model", f"small={model}")
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "data").exists()


def test_ctrl_c_during_the_start_ends_it_cleanly(install):
    installation = install().begin()
    wait_for(lambda: "starting postgres" in installation.log.read_text(), 30)
    installation.stop()
    assert installation.processes() == {}
    assert installation.start().gateway().works()  # and it starts all the same
    assert installation.stop() == 0
