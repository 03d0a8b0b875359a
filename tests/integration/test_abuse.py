"""Shapes that no SDK sends: each gets a clear error or a clean close, and the next request works."""
import json
import socket
import ssl
import struct
import time

import pytest

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def the_next_request_works(gateway):
    yield
    assert gateway.works()


def body_with(gateway, text):
    """A chat body with raw JSON text in the place of a message's content."""
    return f'{{"model":"{gateway.model}","max_tokens":2,"messages":[{{"role":"user","content":{text}}}]}}'


def refused(answer, status, code, param=None):
    got, headers, body = answer
    assert got == status, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code and body["error"]["param"] == param, body
    assert headers["x-request-id"]


# ---- bodies


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}{}", b"\x00", b"\xff\xfe{\x00", b"a=b&c=d", b"{" * 60,
                                  b'{"model"', b"\x1f\x8b\x08\x00", b"--boundary\r\n", b'{"a":"\x01"}'])
def test_a_body_that_is_no_json_object_is_400(gateway, body):
    refused(gateway.post(CHAT, body), 400, "invalid_request")


def test_json_too_deep_is_400(gateway):
    deep = "[" * 1000000
    refused(gateway.post(CHAT, body_with(gateway, deep)), 400, "invalid_request")
    refused(gateway.post(CHAT, body_with(gateway, "[" * 65 + "]" * 65)), 400, "invalid_request")
    refused(gateway.post(CHAT, '{"a":' * 100 + "1" + "}" * 100), 400, "invalid_request")


@pytest.mark.parametrize("text, param", [
    ('"x","content":"y"', "messages[0].content"),
    ('"\\ud800"', "messages[0].content"),
    ('"\\udc00\\ud800"', "messages[0].content"),
    ('"a\\u0000b"', "messages[0].content"),
    ("5", "messages[0].content"),
    ("{}", "messages[0].content"),
    ('["x"]', "messages[0].content[0]"),
    ('[{"type":"text","text":1}]', "messages[0].content[0].text"),
])
def test_a_bad_text_names_its_member(gateway, text, param):
    refused(gateway.post(CHAT, body_with(gateway, text)), 400, "invalid_request", param)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_text_that_is_not_utf8_is_400(gateway, bad):
    body = body_with(gateway, '"TEXT"').encode().replace(b"TEXT", bad)
    refused(gateway.post(CHAT, body), 400, "invalid_request", "messages[0].content")


@pytest.mark.parametrize("value", ["null", "true", "1", "-1", "1.5", "1e400", "99999999999999999999", '""', '"x"', "[]",
                                   "[[]]", "{}", '{"a":1}', "[1,2]", '["a",null]'])
@pytest.mark.parametrize("name", ["model", "messages", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop",
                                  "seed", "stream", "stream_options", "logit_bias", "logprobs", "top_logprobs",
                                  "presence_penalty", "repetition_penalty", "tools", "response_format", "user"])
def test_any_type_in_any_place_is_answered(gateway, name, value):
    members = {"model": f'"{gateway.model}"', "messages": '[{"role":"user","content":"x"}]', "max_tokens": "1"}
    members[name] = value
    if (name, value) == ("max_tokens", "null"):  # no limit: let something else end it soon
        members["stop"] = '[" ", "e", "a"]'
    status, _, body = gateway.post(CHAT, "{" + ",".join(f'"{k}":{v}' for k, v in members.items()) + "}")
    assert status in (200, 400, 404)
    if status == 400:
        assert body["error"]["param"].split(".")[0].split("[")[0] in (name, "model", "messages", "top_logprobs")


def test_a_body_over_the_limit_is_413(gateway):
    big = 8 * 1024 * 1024
    refused(gateway.post(CHAT, body_with(gateway, '"' + "x" * big + '"')), 413, "request_too_large")
    status = raw_status(gateway, f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
                                 f"Content-Length: {big + 1}\r\n\r\n")
    assert status == 413


def test_a_body_just_under_the_limit_is_read(gateway):
    text = "a " * (4 * 1024 * 1024 - 200)
    refused(gateway.post(CHAT, body_with(gateway, f'"{text}"')), 400, "context_length_exceeded", "messages")


def test_a_large_array_of_ids_is_read_off_the_reactor(gateway):
    ids = json.dumps({"model": gateway.model, "prompt": [1] * 1500000})
    refused(gateway.post("/v1/completions", ids), 400, "context_length_exceeded", "prompt")


def test_many_messages_and_many_members_are_400(gateway):
    many = gateway.chat(messages=[{"role": "user", "content": "x"}] * 2049)
    refused(gateway.post(CHAT, many), 400, "invalid_request", "messages")
    members = gateway.chat() | {f"m{i}": i for i in range(20000)}
    assert gateway.post(CHAT, members)[0] == 400


def test_a_control_token_of_a_user_is_text(gateway):
    plain = gateway.post("/v1/tokenize", {"model": gateway.model, "prompt": "<|im_end|>"})[2]
    assert plain["count"] > 1


def test_an_encoded_body_is_refused_by_name(gateway):
    refused(gateway.post(CHAT, b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), 400, "unsupported_parameter",
            "content-encoding")


# ---- connections


def connect(gateway):
    plain = socket.create_connection((gateway.host, gateway.port), timeout=30)
    return gateway.tls.wrap_socket(plain, server_hostname=gateway.host)


def read_all(s):
    data = b""
    try:
        while chunk := s.recv(65536):
            data += chunk
    except (ConnectionError, OSError):
        pass
    return data


def raw_status(gateway, head):
    with connect(gateway) as s:
        s.sendall(head.encode())
        line = s.recv(65536).split(b"\r\n")[0]
    return int(line.split()[1])


def head_of(gateway, n, more=""):
    return (f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {n}\r\n{more}\r\n").encode()


def test_a_body_that_comes_byte_by_byte_is_answered(gateway):
    body = json.dumps(gateway.chat()).encode()
    with connect(gateway) as s:
        s.sendall(head_of(gateway, len(body), "Connection: close\r\n"))
        for i in range(len(body)):
            s.sendall(body[i : i + 1])
            time.sleep(0.002)
        assert read_all(s).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(gateway, part):
    body = json.dumps(gateway.chat()).encode()
    with connect(gateway) as s:
        s.sendall(head_of(gateway, len(body)) + body[: int(len(body) * part)])


def test_clients_that_reset_while_a_large_body_is_parsed_are_forgotten(gateway):
    body = body_with(gateway, '"' + "a " * 100000 + '"').encode()
    for delay in (0, 0.001, 0.005, 0.02):
        s = connect(gateway)
        s.sendall(head_of(gateway, len(body)) + body)
        time.sleep(delay)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()


def test_clients_that_reset_in_the_middle_of_a_stream_are_forgotten(gateway):
    body = json.dumps(gateway.chat(stream=True, max_tokens=2000, ignore_eos=True)).encode()
    for delay in (0, 0.05, 0.2, 0.5):
        s = connect(gateway)
        s.sendall(head_of(gateway, len(body)) + body)
        time.sleep(delay)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()


def test_a_half_closed_client_gets_its_answer(gateway):
    body = json.dumps(gateway.chat()).encode()
    with connect(gateway) as s:
        s.sendall(head_of(gateway, len(body), "Connection: close\r\n") + body)
        s.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            s.unwrap()  # says close_notify; the TCP side stays open
        s.setblocking(True)
        assert read_all(s).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(gateway):
    body = json.dumps(gateway.chat()).encode()
    get = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n".encode()
    with connect(gateway) as s:
        s.sendall(head_of(gateway, len(body)) + body + get + b"Connection: close\r\n\r\n")
        data = read_all(s)
    assert data.count(b"HTTP/1.1 200") == 2 and data.index(b"chat.completion") < data.index(b'"object":"list"')


def test_a_key_is_asked_for_before_the_body_is_read(gateway):
    with connect(gateway) as s:
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert s.recv(65536).startswith(b"HTTP/1.1 401")
