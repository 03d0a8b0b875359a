"""worker.kv_type: what a worker with 8-bit keys and values answers, and how many it has room for."""
import json
import subprocess

import pytest

from installation import BINARY, Installation, wait_for, whole_lines

MIB = 16
CODE = "def area(width, height):\n    return width * height\n"
BYTES = {"f16": 30 * 2 * 3 * 64 * 2, "q8": 30 * 2 * 3 * (64 + 2)}  # SmolLM2's 30 layers of 3 KV heads


def ask(directory, kv_type):
    """The answer to a question and the positions that the KV cache has room for."""
    installation = Installation(directory, "--set", f"worker.kv_type={kv_type}", "--set", f"worker.kv_bytes={MIB}MiB",
                                "--set", "worker.max_context=512").start()
    try:
        gateway = installation.gateway()
        wait_for(gateway.works, 30, installation.said)
        status, _, answer = gateway.post("/v1/chat/completions", gateway.chat(
            messages=[{"role": "user", "content": "Repeat this code exactly, twice:\n" + CODE}], max_tokens=40, temperature=0))
        assert status == 200, answer
        wait_for(lambda: installation.metric("worker", "tiergate_worker_sequences") == 0, 10, "busy")
        ready = next(line for line in map(json.loads, whole_lines(installation.worker_log))
                     if line["event"] == "worker.ready")
        assert ready["kv_type"] == kv_type
        return (answer["choices"][0]["message"]["content"], ready["kv_tokens"],
                installation.metric("worker", "tiergate_worker_kv_free_tokens"))
    finally:
        installation.kill()


@pytest.mark.usefixtures("model_file")
def test_a_worker_with_q8_serves_and_has_room_for_nearly_twice_the_tokens(tmp_path):
    said = {}
    for kv_type, per_token in BYTES.items():
        text, tokens, free = ask(tmp_path / kv_type, kv_type)
        assert tokens == free == MIB * 2**20 // (16 * per_token) * 16
        assert "return width * height" in text, (kv_type, text)
        said[kv_type] = tokens
    assert said["q8"] > 1.9 * said["f16"]


def test_a_type_that_is_none_is_named():
    done = subprocess.run([BINARY, "check-config", "--set", "worker.kv_type=q4"], capture_output=True, text=True)
    assert done.returncode == 2 and "worker.kv_type" in done.stderr and "f16, bf16, f32" in done.stderr.replace("|", ", ")
    assert done.stderr.count("\n") == 1
