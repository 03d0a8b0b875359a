"""Models of other formats than GGUF, served end to end: Hugging Face directories over HTTPS."""
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from installation import BINARY, ROOT, wait_for

TOOL = BINARY.parent / "tests" / "hf_directory"
FIXTURES = ROOT / "tests" / "fixtures" / "hf"
PROMPTS = ["What is the capital of France?", "Write a haiku about rain.", "def fibonacci(n):"]


def answers(gateway):
    """(text, tokens, how it ended) of each prompt, greedy."""
    said = []
    for prompt in PROMPTS:
        status, _, body = gateway.post("/v1/chat/completions", {
            "model": gateway.model, "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": prompt}]})
        assert status == 200, body
        choice = body["choices"][0]
        said.append((choice["message"]["content"], body["usage"]["completion_tokens"], choice["finish_reason"]))
    return said


def served_answers(install, tmp_path, model_file, form, name):
    """What the real model says, dequantised to F32 (538 MB, gone after the call) in the given form."""
    path = tmp_path / "SmolLM2-135M"
    path.mkdir()
    try:
        subprocess.run([TOOL, model_file, path, form], check=True)
        served = install(model=path / name).start()
        said = answers(served.gateway())
        assert served.stop() == 0
        return said
    finally:
        shutil.rmtree(path)


def test_a_directory_says_what_its_gguf_says(install, tmp_path, model_file):
    from_directory = served_answers(install, tmp_path, model_file, "F32", "")
    assert from_directory == served_answers(install, tmp_path, model_file, "GGUF", "float.gguf")
    assert "Paris" in from_directory[0][0]


@pytest.mark.parametrize("name", ["llama3-f16-sharded-tied", "awq-qwen2", "gptq-v2-qwen2-act-order"])
def test_a_small_directory_is_served(install, name):
    served = install(model=FIXTURES / name).start()
    gateway = served.gateway()
    status, _, body = gateway.post("/v1/chat/completions", gateway.chat(max_tokens=8, ignore_eos=True))
    assert status == 200 and body["usage"]["completion_tokens"] == 8, body
    assert served.stop() == 0


def test_a_directory_that_is_wrong_is_one_line_with_file_and_field(tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(FIXTURES / "qwen2-f32-tied", broken)
    config = json.loads((broken / "config.json").read_text())
    config["model_type"] = "gemma2"
    (broken / "config.json").write_text(json.dumps(config))
    done = subprocess.run([BINARY, "model", "check", broken], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'config.json: model_type is "gemma2"' in done.stderr


# ---- add, ls, verify, rm


@pytest.fixture
def cli(gateway):
    """`tiergate model WORDS` of the shared installation, and no model left in its registry afterwards."""
    def call(*words):
        line = [BINARY, "model", *words, "--config", f"{gateway.ready['data_dir']}/run.ini"]
        return subprocess.run(line, capture_output=True, text=True)
    yield call
    for model in json.loads(call("ls", "--json").stdout):
        assert call("rm", model["name"], "--unassign").returncode == 0


def copy(name, to):
    shutil.copytree(FIXTURES / name, to)
    return to


def test_a_directory_is_added_listed_verified_and_removed(cli, tmp_path):
    path = copy("qwen2-yarn-bf16-sharded", tmp_path / "Tiny-Qwen2")
    done = cli("add", path, "--tier", "7b")
    assert done.returncode == 0, done.stderr
    assert f"[model tiny-qwen2]\npath = {path}\ntier = 7b\n" in done.stdout
    [model] = json.loads(cli("ls", "--json").stdout)
    assert (model["name"], model["path"], model["format"], model["tier"]) == ("tiny-qwen2", str(path), "safetensors", "7b")
    assert model["context"] == 128 and model["shape"]["layers"] == 2 and model["shape"]["architecture"] == "qwen2"
    assert model["files"] == len(list(path.iterdir())) and model["tenants"] == 0
    assert model["bytes"] == sum(p.stat().st_size for p in path.iterdir())
    assert "tiny-qwen2" in cli("ls").stdout
    assert cli("verify").stdout == "tiny-qwen2: as it was added\n"
    assert cli("rm", "tiny-qwen2").returncode == 0
    assert json.loads(cli("ls", "--json").stdout) == []
    assert path.exists()


def test_add_records_the_sum_of_every_file_that_is_read(cli, tmp_path, model_file):
    path = copy("llama-bf16", tmp_path / "llama")
    (path / "README.md").write_text("not read")
    added = json.loads(cli("add", path, "--json").stdout)
    sums = {f["file"]: f["sha256"] for f in added["files"]}
    assert sums == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir() if p.name != "README.md"}
    added = json.loads(cli("add", model_file, "--name", "real", "--json").stdout)
    assert added["format"] == "gguf"
    assert [f["sha256"] for f in added["files"]] == [hashlib.sha256(Path(model_file).read_bytes()).hexdigest()]


@pytest.mark.parametrize("harm, says", [
    (lambda d: (d / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-00003.safetensors is gone"),
    (lambda d: flip(d / "model-00001-of-00003.safetensors", -1), "model-00001-of-00003.safetensors has another SHA-256"),
    (lambda d: (d / "generation_config.json").write_text("{}"), "generation_config.json has another size"),
    (lambda d: (d / "chat_template.jinja").unlink(), "chat_template.jinja is gone"),
    (lambda d: flip(d / "config.json", 5), "config.json"),
    (lambda d: shutil.rmtree(d), "No such file"),
])
def test_verify_names_what_differs(cli, tmp_path, harm, says):
    path = copy("qwen2-yarn-bf16-sharded", tmp_path / "m")
    assert cli("add", path).returncode == 0
    harm(path)
    done = cli("verify", "m")
    assert done.returncode == 1 and says in done.stdout, done.stdout + done.stderr
    assert "1 of 1 model differs from what was added" in done.stderr
    [told] = json.loads(cli("verify", "--json").stdout)
    assert told["name"] == "m" and told["same"] is False


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_new_file_that_is_read_differs(cli, tmp_path):
    path = copy("qwen2-f32-tied", tmp_path / "m")
    (path / "generation_config.json").unlink()
    assert cli("add", path).returncode == 0
    (path / "generation_config.json").write_text("{}")
    assert "generation_config.json is new" in cli("verify").stdout


def test_a_model_that_a_tenant_may_use_is_removed_with_its_assignments_only(install):
    served = install(model=FIXTURES / "qwen2-f32-tied", name="tiny").start()
    gateway = served.gateway()
    gateway.command("model", "add", str(FIXTURES / "qwen2-f32-tied"), "--name", "tiny")
    plain = [BINARY, "model", "rm", "tiny", "--config", f"{gateway.ready['data_dir']}/run.ini"]
    done = subprocess.run(plain, capture_output=True, text=True)
    assert done.returncode == 2
    assert "tiny is assigned to tenant 'local' as 'tiny'" in done.stderr
    assert [m["tenants"] for m in gateway.command("model", "ls")] == [1]
    assert gateway.works()
    assert gateway.command("model", "rm", "tiny", "--unassign") == {"name": "tiny", "removed": True, "unassigned": 1}
    wait_for(lambda: gateway.post("/v1/chat/completions", gateway.chat())[0] == 403, 10, "still assigned")
    assert served.stop() == 0


@pytest.mark.parametrize("words, status, says", [
    ([], 2, "say check, add, ls, verify or rm"),
    (["load"], 2, "say check, add, ls, verify or rm"),
    (["check"], 2, "model check needs a GGUF file or a directory"),
    (["add"], 2, "model add needs a GGUF file or a directory"),
    (["rm"], 2, "model rm needs a name"),
    (["ls", "x"], 2, "'x' is one word too many"),
    (["add", "/nowhere"], 2, "no such file or directory: /nowhere"),
    (["add", FIXTURES / "qwen2-f32-tied", "--name", "No Name"], 2, "--name is 1 to 63 small letters"),
    (["add", FIXTURES / "qwen2-f32-tied", "--tier", "7B"], 2, "--tier is 1 to 15 small letters"),
    (["add", FIXTURES / "qwen2-f32-tied", "--template", "jinja"], 1, "no chat template 'jinja'"),
    (["add", ROOT / "docs" / "models.md"], 1, "not a GGUF file"),
    (["add", ROOT / "docs"], 1, "config.json: No such file"),
    (["rm", "nothing"], 1, "there is no model 'nothing'"),
    (["verify", "nothing"], 1, "there is no model 'nothing'"),
])
def test_a_wrong_word_is_one_clear_line(cli, words, status, says):
    done = cli(*words)
    assert done.returncode == status and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_name_is_taken_once(cli):
    assert cli("add", FIXTURES / "qwen2-f32-tied", "--name", "one").returncode == 0
    done = cli("add", FIXTURES / "llama-bf16", "--name", "one")
    assert done.returncode == 2 and "there is a model 'one' already" in done.stderr
    [model] = json.loads(cli("ls", "--json").stdout)
    assert model["path"] == str(FIXTURES / "qwen2-f32-tied")


# ---- fit


def fit(*words):
    return subprocess.run([BINARY, "fit", *words], capture_output=True, text=True)


def test_fit_adds_up(model_file):
    for words in (["7b", "--gpu", "h100-80g"], [model_file, "--memory", "2GiB"], [FIXTURES / "qwen3-bf16", "--memory", "64MiB"]):
        told = json.loads(fit(*words, "--json").stdout)
        left = told["used_bytes"] - told["weight_bytes"] - told["activation_bytes"]
        assert told["fits"] and told["kv_bytes"] == left
        assert told["kv_tokens"] == left // (16 * told["kv_bytes_per_token"]) * 16
        for one in told["concurrent"]:
            assert one["requests"] == told["kv_tokens"] // 16 // -(-one["context"] // 16)


def test_fit_of_a_file_is_that_of_its_published_shape(model_file):
    real = json.loads(fit(model_file, "--memory", "2GiB", "--json").stdout)
    named = json.loads(fit("smollm2-135m", "--memory", "2GiB", "--json").stdout)
    same = ("parameters", "kv_bytes_per_token", "activation_bytes")
    assert [real[k] for k in same] == [named[k] for k in same]


@pytest.mark.parametrize("kv_type, per_token", [("f16", 57344), ("bf16", 57344), ("f32", 114688), ("q8", 29120)])
def test_fit_counts_the_kv_type(kv_type, per_token):
    told = json.loads(fit("7b", "--gpu", "h100-80g", "--kv-type", kv_type, "--json").stdout)
    assert told["kv_type"] == kv_type and told["kv_bytes_per_token"] == per_token
    assert told["kv_tokens"] == told["kv_bytes"] // (16 * per_token) * 16


@pytest.mark.parametrize("words, status, says", [
    (["72b", "--gpu", "h100-80g"], 1, "Qwen2.5-72B does not fit: weights and activations take 135.7 GiB of the 71.7 GiB"),
    (["7b", "--memory", "14.6GiB", "--context", "32768"], 1, "not one request of 32768 tokens fits"),
    ([], 2, "say which model"),
    (["9b"], 2, "'9b' is neither a file, a directory nor the name of a known shape"),
    (["7b", "--gpu", "h100"], 2, "--gpu 'h100' is not known; known are a100-40g"),
    (["7b", "--memory", "24"], 2, "--memory is a size such as 24GiB, not '24'"),
    (["7b", "--memory", "-1GiB"], 2, "--memory is a size such as 24GiB, not '-1GiB'"),
    (["7b", "--memory", "nanGiB"], 2, "--memory is a size"),
    (["7b", "--memory", "1GiB", "--gpu", "l4"], 2, "give --memory or --gpu, not both"),
    (["7b", "--weights", "int3"], 2, "--weights is bf16, f16, q8_0, q4_0, q4_k_m, awq or gptq, not 'int3'"),
    (["7b", "--context", "40000"], 2, "--context is 1 to 32768, the context of Qwen2.5-7B, not 40000"),
    (["7b", "--context", "-1"], 2, "--context is 1 to"),
    (["7b", "--kv-type", "q4"], 2, "--kv-type is f16, bf16, f32 or q8, not 'q4'"),
    (["7b", "--step-tokens", "0"], 2, "--step-tokens is 1 to 65536, not 0"),
    ([FIXTURES / "qwen3-bf16", "--weights", "f16"], 2, "--weights is for the name of a shape"),
    ([ROOT / "README.md"], 1, "not a GGUF file"),
])
def test_fit_says_what_is_wrong_in_one_line(words, status, says):
    done = fit(*words)
    assert done.returncode == status and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
