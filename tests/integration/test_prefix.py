"""A prompt asked again is found in the cache: the answer is the same, and what was found is told and has its price."""
import pytest

from installation import Installation, wait_for

IN, CACHED, OUT = 50, 7, 300  # nano-units per token
SYSTEM = "You answer questions about rivers. " + "Be brief, be exact, and name your sources. " * 20


@pytest.fixture(scope="module")
def gateway(model_file, tmp_path_factory):
    prices = [f"model.small.{name}={value}" for name, value in
              (("price_in", IN), ("price_cached", CACHED), ("price_out", OUT))]
    options = [word for price in prices for word in ("--set", price)]
    installation = Installation(tmp_path_factory.mktemp("prefix"), *options).start()
    gateway = installation.gateway()
    wait_for(gateway.works, 30, installation.said)
    yield gateway
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


def ask(gateway, question, **more):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    status, headers, answer = gateway.post("/v1/chat/completions", gateway.chat(
        messages=messages, max_tokens=12, temperature=0, **more))
    assert status == 200, answer
    usage, row = answer["usage"], gateway.row(headers["x-request-id"])
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert row["cached_tokens"] == cached
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row["money_nano"] == ((usage["prompt_tokens"] - cached) * IN + cached * CACHED
                                 + usage["completion_tokens"] * OUT)
    return cached, usage["prompt_tokens"], [choice["message"]["content"] for choice in answer["choices"]]


def test_what_was_found_is_told_and_charged_at_its_price(gateway):
    cached, prompt, first = ask(gateway, "Which is the longest?")
    assert cached == 0 and prompt > 200
    cached, again, second = ask(gateway, "Which is the longest?")
    assert second == first
    assert cached == (again - 1) // 16 * 16  # all full pages but never the last token
    cached, other, _ = ask(gateway, "Which one is the widest of all?")
    assert 150 < cached < other and cached % 16 == 0  # the system message alone is shared
    cached, prompt, texts = ask(gateway, "Which is the longest?", n=2)
    assert cached == (prompt - 1) // 16 * 16 and texts == first * 2
