"""openai-python, unchanged, over TLS with the installation's own CA."""
import math
import time

import openai
import pytest

HELLO = [{"role": "user", "content": "Say hello."}]


def test_models_are_listed_and_found(client, model):
    listed = {m.id: m for m in client.models.list()}
    assert model in listed
    one = client.models.retrieve(model)
    assert one.id == model and one.object == "model" and one.created > 0
    assert one.max_model_len > 0


def test_a_chat_is_answered_with_usage_and_ids(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_completion_tokens=8, temperature=0, user="someone", store=False,
        metadata={"purpose": "test"}, service_tier="auto")
    chat = raw.parse()
    choice = chat.choices[0]
    assert chat.id.startswith("chatcmpl-") and chat.object == "chat.completion" and chat.model == model
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert chat.usage.completion_tokens <= 8 and chat.usage.prompt_tokens > 0
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert chat.usage.prompt_tokens_details.cached_tokens >= 0
    assert chat.system_fingerprint and chat.service_tier == "default"
    assert raw.headers["x-request-id"] in chat.id
    assert raw.headers["x-tiergate-route"].startswith("tier=")


def test_a_stream_says_what_the_whole_answer_says(client, model):
    wanted = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1


def test_one_event_comes_per_token(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=10, temperature=0,
                                                 stream=True, extra_body={"ignore_eos": True}))
    told = [c for c in chunks if c.choices[0].delta.content is not None and c.choices[0].delta.role is None]
    assert len(told) == 10
    assert all(c.usage is None for c in chunks)


def test_the_streaming_helper_understands_the_stream(client, model):
    with client.chat.completions.stream(model=model, messages=HELLO, max_tokens=5, temperature=0) as stream:
        events = [event.type for event in stream]
        final = stream.current_completion_snapshot
    assert "content.delta" in events and "content.done" in events
    assert final.choices[0].message.content


def test_content_may_be_parts(client, model):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    one = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}], max_tokens=8,
                                         temperature=0)
    two = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0)
    assert one.choices[0].message.content == two.choices[0].message.content


def test_n_choices_differ_and_are_all_complete(client, model):
    chat = client.chat.completions.create(model=model, messages=HELLO, n=3, max_tokens=12, temperature=1.5, seed=1)
    assert [c.index for c in chat.choices] == [0, 1, 2]
    assert len({c.message.content for c in chat.choices}) > 1
    assert chat.usage.completion_tokens <= 36


def test_n_choices_may_be_streamed(client, model):
    seen = {}
    for chunk in client.chat.completions.create(model=model, messages=HELLO, n=2, max_tokens=6, seed=1, stream=True):
        for choice in chunk.choices:
            seen.setdefault(choice.index, []).append(choice)
    assert sorted(seen) == [0, 1]
    for choices in seen.values():
        assert choices[0].delta.role == "assistant" and choices[-1].finish_reason


@pytest.mark.parametrize("n", [1, 2])
def test_a_seed_repeats_its_answer(client, model, n):
    wanted = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 1.2, "n": n}
    first = client.chat.completions.create(**wanted, seed=-7)
    again = client.chat.completions.create(**wanted, seed=-7)
    other = client.chat.completions.create(**wanted, seed=8)
    texts = [[c.message.content for c in r.choices] for r in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert first.system_fingerprint == again.system_fingerprint


def test_a_stop_string_ends_the_answer_before_it(client, model):
    wanted = {"model": model, "prompt": "1, 2, 3, 4, 5,", "max_tokens": 24, "temperature": 0}
    free = client.completions.create(**wanted).choices[0].text
    assert "8" in free
    stopped = client.completions.create(**wanted, stop=["8", "not there"]).choices[0]
    assert stopped.text == free[: free.index("8")]
    assert stopped.finish_reason == "stop"
    streamed = "".join(c.choices[0].text for c in client.completions.create(**wanted, stop="8", stream=True))
    assert streamed == stopped.text


def test_logprobs_belong_to_the_text(client, model):
    choice = client.chat.completions.create(model=model, messages=HELLO, max_tokens=6, temperature=0, logprobs=True,
                                            top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    text = b"".join(bytes(t.bytes) for t in tokens if not t.token.startswith("<|")).decode()
    assert text.startswith(choice.message.content) or choice.message.content.startswith(text)
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-4)  # greedy
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001
    bare = client.chat.completions.create(model=model, messages=HELLO, max_tokens=2, logprobs=True).choices[0]
    assert all(t.top_logprobs == [] for t in bare.logprobs.content)


def test_logprobs_may_be_streamed(client, model):
    wanted = {"model": model, "messages": HELLO, "max_tokens": 6, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**wanted).choices[0].logprobs.content
    told = []
    for chunk in client.chat.completions.create(**wanted, stream=True):
        if chunk.choices[0].logprobs:
            told += chunk.choices[0].logprobs.content
    assert [t.token for t in told] == [t.token for t in whole]


def test_logit_bias_forbids_and_forces(client, model, gateway):
    _, _, body = gateway.post("/v1/tokenize", {"model": model, "prompt": " yes", "add_special_tokens": False})
    token = body["tokens"][0]
    forced = client.completions.create(model=model, prompt="Answer:", max_tokens=3, temperature=0,
                                       logit_bias={str(token): 100})
    assert forced.choices[0].text == " yes yes yes"
    free = client.completions.create(model=model, prompt="Answer:", max_tokens=1, temperature=0, logprobs=1)
    first = next(iter(free.choices[0].logprobs.top_logprobs[0]))
    _, _, body = gateway.post("/v1/tokenize", {"model": model, "prompt": first, "add_special_tokens": False})
    barred = client.completions.create(model=model, prompt="Answer:", max_tokens=1, temperature=0,
                                       logit_bias={str(body["tokens"][0]): -100})
    assert barred.choices[0].text != first


def test_sampling_parameters_are_taken(client, model):
    greedy = client.completions.create(model=model, prompt="Once upon", max_tokens=6, temperature=0).choices[0].text
    for more in ({"top_k": 1}, {"min_p": 0.999}):
        one = client.completions.create(model=model, prompt="Once upon", max_tokens=6, temperature=1.5, seed=3,
                                        extra_body=more)
        assert one.choices[0].text == greedy, more
    one = client.completions.create(model=model, prompt="Once upon", max_tokens=6, temperature=1.5, seed=3, top_p=0)
    assert one.choices[0].text == greedy
    penalised = client.completions.create(model=model, prompt="a a a a a a a a", max_tokens=8, temperature=0,
                                          extra_body={"repetition_penalty": 5}).choices[0].text
    assert " a a" not in penalised


def test_a_completion_echoes_with_logprobs_of_the_prompt(client, model):
    prompt = "The sky is blue and the gr\u00fcn \U0001f600 tree"
    choice = client.completions.create(model=model, prompt=prompt, max_tokens=3, temperature=0, echo=True,
                                       logprobs=2).choices[0]
    logs = choice.logprobs
    n = len(logs.tokens)
    assert choice.text.startswith(prompt) and len(choice.text) > len(prompt)
    assert len(logs.token_logprobs) == len(logs.top_logprobs) == len(logs.text_offset) == n
    assert logs.token_logprobs[0] is None and logs.top_logprobs[0] is None
    assert all(v <= 0 for v in logs.token_logprobs[1:])
    assert logs.text_offset == sorted(logs.text_offset) and logs.text_offset[0] == 0
    for token, offset in zip(logs.tokens, logs.text_offset):
        if not token.startswith(("bytes:", "<|")):
            assert choice.text[offset : offset + len(token)] == token
    streamed = list(client.completions.create(model=model, prompt=prompt, max_tokens=3, temperature=0, echo=True,
                                              logprobs=2, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == choice.text
    assert sum((c.choices[0].logprobs.tokens for c in streamed if c.choices[0].logprobs), []) == logs.tokens


def test_a_completion_takes_every_shape_of_prompt(client, model, gateway):
    texts = ["The sky is", "2 + 2 ="]
    ids = [gateway.post("/v1/tokenize", {"model": model, "prompt": t})[2]["tokens"] for t in texts]
    answers = [client.completions.create(model=model, prompt=p, max_tokens=4, temperature=0)
               for p in (texts[0], [texts[0]], ids[0], [ids[0]])]
    assert len({a.choices[0].text for a in answers}) == 1
    both = client.completions.create(model=model, prompt=texts, n=2, max_tokens=4, temperature=0)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == answers[0].choices[0].text
    assert both.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    same = client.completions.create(model=model, prompt=ids, max_tokens=4, temperature=0)
    assert [c.text for c in same.choices] == [both.choices[0].text, both.choices[2].text]
    streamed = {}
    for chunk in client.completions.create(model=model, prompt=texts, max_tokens=4, temperature=0, stream=True):
        streamed[chunk.choices[0].index] = streamed.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert [streamed[0], streamed[1]] == [c.text for c in same.choices]


def test_tokenize_and_detokenize_are_each_others_inverse(client, model, gateway):
    text = "int main(void) { return 0; } // h\u00e9llo \u4f60\u597d \U0001f600"
    _, _, made = gateway.post("/v1/tokenize", {"model": model, "prompt": text, "return_token_strs": True})
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"]) and made["max_model_len"] > 0
    _, _, back = gateway.post("/v1/detokenize", {"model": model, "tokens": made["tokens"]})
    assert back["prompt"] == text
    _, _, chat = gateway.post("/v1/tokenize", {"model": model, "messages": HELLO})
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=1)
    assert answer.usage.prompt_tokens == chat["count"]


def test_a_long_prompt_is_answered(client, model):
    text = "word " * 1500
    answer = client.completions.create(model=model, prompt=text, max_tokens=1)
    assert answer.usage.prompt_tokens >= 1500


# ---- errors


def refused(kind, call, status, code, param=None):
    with pytest.raises(kind) as caught:
        call()
    e = caught.value
    assert (e.status_code, e.code, e.param) == (status, code, param), e.body
    assert set(e.body) == {"message", "type", "param", "code"} and e.message
    assert e.request_id
    return e


@pytest.mark.parametrize("key", ["nonsense", "tg_live_aaaaaaaa_" + "b" * 32 + "cccccc", "sk-" + "a" * 40, "tg_live_"])
def test_an_unknown_key_is_an_authentication_error(gateway, key):
    with gateway.client(api_key=key) as c:
        refused(openai.AuthenticationError, c.models.list, 401, "invalid_api_key")
        refused(openai.AuthenticationError,
                lambda: c.chat.completions.create(model=gateway.model, messages=HELLO), 401, "invalid_api_key")


def test_a_revoked_key_stops_within_two_seconds(gateway):
    made = gateway.command("key", "create", "--tenant", "local", "--user", "developer", "--name", "revoked")
    with gateway.client(api_key=made["key"]) as c:
        assert c.models.list().data
        gateway.command("key", "revoke", made["id"])
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                c.models.list()
            except openai.AuthenticationError:
                return
            time.sleep(0.05)
    pytest.fail("the key still works after 2 s")


def test_a_model_of_others_is_a_permission_error(gateway, model):
    made = gateway.command("key", "create", "--tenant", "stranger", "--user", "u", "--name", "n", "--create-missing")
    with gateway.client(api_key=made["key"]) as c:
        assert c.models.list().data == []
        refused(openai.NotFoundError, lambda: c.models.retrieve(model), 404, "model_not_found", "model")
        refused(openai.PermissionDeniedError,
                lambda: c.chat.completions.create(model=model, messages=HELLO), 403, "model_not_allowed", "model")


def test_a_key_without_the_role_is_a_permission_error(gateway):
    made = gateway.command("key", "create", "--tenant", "local", "--user", "developer", "--name", "admin-only",
                           "--roles", "admin")
    with gateway.client(api_key=made["key"]) as c:
        refused(openai.PermissionDeniedError, c.models.list, 403, "permission_denied")


def test_an_unknown_model_is_not_found(client):
    refused(openai.NotFoundError, lambda: client.models.retrieve("gpt-99"), 404, "model_not_found", "model")
    refused(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-99", messages=HELLO), 404,
            "model_not_found", "model")
    refused(openai.NotFoundError, lambda: client.embeddings.create(model="m", input="x"), 404, "not_found")


@pytest.mark.parametrize("more, code, param", [
    ({"temperature": 3}, "invalid_request", "temperature"),
    ({"n": 9}, "invalid_request", "n"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_request", "messages[0].role"),
    ({"logit_bias": {"99999999": 1}}, "invalid_request", "logit_bias"),
    ({"stop": ["a"] * 5}, "invalid_request", "stop"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"extra_body": {"no_such": 1}}, "unsupported_parameter", "no_such"),
    ({"extra_headers": {"Idempotency-Key": "k" * 256}}, "invalid_request", "idempotency-key"),
    ({"extra_headers": {"x-tiergate-deadline-ms": "soon"}}, "invalid_request", "x-tiergate-deadline-ms"),
    ({"extra_headers": {"x-tiergate-task": "poetry"}}, "invalid_request", "x-tiergate-task"),
    ({"extra_headers": {"x-tiergate-allow-truncate": "yes"}}, "invalid_request", "x-tiergate-allow-truncate"),
    ({"max_tokens": 1000000}, "context_length_exceeded", "messages"),
])
def test_a_bad_request_names_its_member(client, model, more, code, param):
    wanted = {"model": model, "messages": HELLO, "max_tokens": 4}
    refused(openai.BadRequestError, lambda: client.chat.completions.create(**(wanted | more)), 400, code, param)


def test_too_long_a_context_says_the_numbers(client, model):
    limit = client.models.retrieve(model).max_model_len
    e = refused(openai.BadRequestError,
                lambda: client.completions.create(model=model, prompt=[1] * limit, max_tokens=1), 400,
                "context_length_exceeded", "prompt")
    assert str(limit) in e.message and str(limit + 1) in e.message


def test_token_ids_are_held_to_the_vocabulary(client, model):
    refused(openai.BadRequestError, lambda: client.completions.create(model=model, prompt=[1, 10000000]), 400,
            "invalid_request", "prompt[1]")


def test_fill_in_the_middle_needs_a_model_that_can(client, model):
    refused(openai.BadRequestError, lambda: client.completions.create(model=model, prompt="a", suffix="b"), 400,
            "fim_not_supported", "suffix")


def test_an_early_error_of_a_stream_has_its_status(client, model):
    refused(openai.NotFoundError,
            lambda: client.chat.completions.create(model="gpt-99", messages=HELLO, stream=True), 404,
            "model_not_found", "model")


def test_a_deadline_that_passes_is_a_504_that_is_not_retried(gateway, model):
    status, headers, body = gateway.post(
        "/v1/completions", {"model": model, "prompt": "word " * 3000, "max_tokens": 4000, "ignore_eos": True},
        headers={"x-tiergate-deadline-ms": "50"})
    assert status == 504 and body["error"]["code"] == "deadline_exceeded"
    assert headers["x-should-retry"] == "false"


# ---- leaving


def test_a_stream_may_be_left(client, model, gateway):
    started = time.monotonic()
    stream = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4000, stream=True,
                                            extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 3:
            break
    stream.close()
    assert time.monotonic() - started < 30
    assert gateway.works()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        rows = gateway.command("usage", "--requests", "--limit", "20")
        left = [r for r in rows if r["outcome"] == "client_gone"]
        if left and 1 <= left[0]["completion_tokens"] < 4000:
            return
        time.sleep(0.2)
    pytest.fail("no usage row of the stream that was left")


def test_keys_come_in_three_headers(gateway):
    for name, value in (("Authorization", f"bearer {gateway.key}"), ("x-api-key", gateway.key),
                        ("api-key", gateway.key)):
        status, _, _ = gateway.request("GET", "/v1/models", headers={name: value}, key=False)
        assert status == 200, name
    status, headers, body = gateway.request("GET", "/v1/models", key=False)
    assert status == 401 and body["error"]["code"] == "invalid_api_key" and headers["www-authenticate"] == "Bearer"


def test_methods_and_paths_are_told_apart(gateway):
    status, headers, body = gateway.request("GET", "/v1/chat/completions")
    assert status == 405 and "POST" in headers["allow"] and body["error"]["code"] == "method_not_allowed"
    status, headers, _ = gateway.request("OPTIONS", "/v1/models", key=False)
    assert status == 204 and "GET" in headers["allow"]
    status, headers, body = gateway.request("HEAD", "/v1/models")
    assert status == 200 and int(headers["content-length"]) > 0 and not body
    for path in ("/", "/v1", "/v1/models/", "/v1/chat/completions/", "/admin/v1/keys", "/v1/../v1/models"):
        status, headers, body = gateway.request("GET", path)
        assert status == 404 and body["error"]["code"] == "not_found" and headers["x-request-id"], path
