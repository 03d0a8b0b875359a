"""Models of other formats than GGUF, served end to end: Hugging Face directories over HTTPS."""
import json
import shutil
import subprocess

import pytest

from installation import BINARY, ROOT, Installation

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


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.iterdir() if p.is_dir()))
def test_every_small_directory_is_served(install, name):
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
