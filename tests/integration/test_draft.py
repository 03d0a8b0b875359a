"""Guessing tokens from the text so far: the answer is the one without guesses, in fewer steps."""
import urllib.request

import pytest

from installation import Installation, wait_for

CODE = "def area(width, height):\n    return width * height\n\ndef perimeter(width, height):\n    return 2 * (width + height)\n"
QUESTIONS = [dict(temperature=0), dict(temperature=0.4, seed=5), dict(temperature=0.4, seed=6, n=2),
             dict(temperature=0, stop=["perimeter"])]


def answers(directory, draft_rows):
    """What each question got, the steps of each, and the worker's counts of guesses (made, right)."""
    installation = Installation(directory, "--set", f"worker.draft_rows={draft_rows}").start()
    try:
        gateway = installation.gateway()
        wait_for(gateway.works, 30, installation.said)
        texts, steps = [], []
        for more in QUESTIONS:
            messages = [{"role": "user", "content": "Repeat this code exactly, twice:\n" + CODE}]
            status, headers, answer = gateway.post("/v1/chat/completions", gateway.chat(
                messages=messages, max_tokens=90, logprobs=True, **more))
            assert status == 200, answer
            gateway.row(headers["x-request-id"])
            steps.append(gateway.command("why", headers["x-request-id"])["steps"])
            texts.append([(choice["message"]["content"], choice["finish_reason"], choice["logprobs"])
                          for choice in answer["choices"]])
        return texts, steps, [metric(installation, name) for name in ("draft_tokens", "draft_accepted_tokens")]
    finally:
        installation.kill()


def metric(installation, name):
    with urllib.request.urlopen(installation.ready()["workers"][0]["ops_url"] + "/metrics") as page:
        line = next(line for line in page.read().decode().splitlines() if line.startswith(f"tiergate_worker_{name}_total "))
    return float(line.split()[1])


@pytest.mark.usefixtures("model_file")
def test_guesses_change_the_number_of_steps_only(tmp_path):
    texts, steps, (made, right) = answers(tmp_path / "guessing", 8)
    plain_texts, plain_steps, (none, _) = answers(tmp_path / "plain", 0)
    assert texts == plain_texts
    assert none == 0 and 0 < right <= made
    assert sum(steps) < 0.8 * sum(plain_steps), (steps, plain_steps, made, right)
