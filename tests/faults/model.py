"""A tiny Llama with random weights, made from a seed, in which every sampled token is one printable character.

So a client can count tokens by counting characters, and an answer names its own positions: with a seed it is the same
text each time, whatever batch it runs in. Usage: model.py FILE
"""
import random
import struct
import sys

LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, INNER = 2, 64, 2, 1, 32, 96
CONTEXT = 256
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 288
END = 256  # <|endoftext|>
PRINTABLE = range(32, 127)

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(name, kind, value):
    head = text(name) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        of, items = value
        body = b"".join(text(x) if of == STRING else struct.pack("<i", x) for x in items)
        return head + struct.pack("<IQ", of, len(items)) + body
    return head + struct.pack({U32: "<I", F32: "<f"}[kind], value)


def byte_names():
    """GPT-2's alphabet: a printable name for each byte."""
    names, other = [], 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 255 and byte != 173:
            names.append(chr(byte))
        else:
            names.append(chr(other))
            other += 1
    return names


def fields(context):
    tokens = byte_names() + CONTROL
    types = [1] * 256 + [3] * (VOCABULARY - 256)
    tokens += [f"<|unused{i}|>" for i in range(VOCABULARY - len(tokens))]
    return [
        field("general.architecture", STRING, "llama"),
        field("general.name", STRING, "faults"),
        field("llama.block_count", U32, LAYERS),
        field("llama.context_length", U32, context),
        field("llama.embedding_length", U32, DIM),
        field("llama.feed_forward_length", U32, INNER),
        field("llama.attention.head_count", U32, HEADS),
        field("llama.attention.head_count_kv", U32, KV_HEADS),
        field("llama.attention.key_length", U32, HEAD_DIM),
        field("llama.attention.value_length", U32, HEAD_DIM),
        field("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        field("llama.rope.freq_base", F32, 10000.0),
        field("tokenizer.ggml.model", STRING, "gpt2"),
        field("tokenizer.ggml.pre", STRING, "qwen2"),
        field("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        field("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        field("tokenizer.ggml.merges", ARRAY, (STRING, [])),
        field("tokenizer.ggml.eos_token_id", U32, END),
    ]


def tensors(seed):
    """(name, [n_in] or [n_in, n_out], values) of each; rows of the head that no answer may hold are zero."""
    r = random.Random(seed)

    def matrix(name, n_in, n_out, scale):
        return name, [n_in, n_out], [r.gauss(0, scale / n_in ** 0.5) for _ in range(n_in * n_out)]

    def gain(name):
        return name, [DIM], [1 + r.uniform(-0.3, 0.3) for _ in range(DIM)]

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    yield "token_embd.weight", [DIM, VOCABULARY], [r.gauss(0, 1) for _ in range(DIM * VOCABULARY)]
    head = [[0.0] * DIM for _ in range(VOCABULARY)]
    for token in [*PRINTABLE, END]:
        head[token] = [r.gauss(0, 1) for _ in range(DIM)]  # logits of about 8 x a normal number
    yield "output.weight", [DIM, VOCABULARY], [x for row in head for x in row]
    yield gain("output_norm.weight")
    for i in range(LAYERS):
        b = f"blk.{i}."
        yield gain(b + "attn_norm.weight")
        yield matrix(b + "attn_q.weight", DIM, q, 1.5)
        yield matrix(b + "attn_k.weight", DIM, kv, 1.5)
        yield matrix(b + "attn_v.weight", DIM, kv, 1.5)
        yield matrix(b + "attn_output.weight", q, DIM, 1.5)
        yield gain(b + "ffn_norm.weight")
        yield matrix(b + "ffn_gate.weight", DIM, INNER, 1.5)
        yield matrix(b + "ffn_up.weight", DIM, INNER, 1.5)
        yield matrix(b + "ffn_down.weight", INNER, DIM, 1.5)


def build(seed=1, context=CONTEXT):
    keys, infos, data = fields(context), [], b""
    for name, shape, values in tensors(seed):
        infos.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
                     + struct.pack("<IQ", 0, len(data)))  # type 0: F32
        data += struct.pack(f"<{len(values)}f", *values)
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + data


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as f:
        f.write(build())
