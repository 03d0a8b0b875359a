#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer and tests/fixtures/template/goldens.json: what Hugging Face's tokenizers and Jinja make of texts and
conversations.

    gen_tokenizer_goldens.py --model SmolLM2.gguf --package tokenizer-qwen3.tgz --fixtures tests/fixtures [--templates DIR]

The tokenizers are those of the published tokenizer.json files: Qwen3's as it stands; SmolLM2's built from the vocabulary in the GGUF file and
its published steps (Digits, ByteLevel); llama-bpe's and gpt-2's steps over Qwen3's and SmolLM2's vocabularies. Names of control tokens in a text
are ids in "trusted" and text in "plain".

The chat templates belong to their models: SmolLM2's is read from the GGUF file, Qwen3's from the package, the others from DIR/NAME.jinja
(qwen2, qwen2.5, qwen3-thinking, llama3, llama3.1, llama3.2). Without --templates the goldens of the templates stay as they are.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import struct

import gguf
import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from make_vocab_gguf import CONTROL, read_package, token_type
from template_corpus import conversations
from tokenizer_corpus import blocks, strings

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def smollm2(path, pre):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x, k in zip(tokens, types) if k == CONTROL])
    return t


def qwen3(definition, llama=False):
    d = json.loads(json.dumps(definition))
    for added in d["added_tokens"]:  # as the GGUF file marks them
        added["special"] = token_type(added) == CONTROL
    if llama:
        d["normalizer"] = None
        d["model"]["ignore_merges"] = True
        d["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3
    return Tokenizer.from_str(json.dumps(d))


def encode(t, texts, plain):
    t.encode_special_tokens = plain
    return [e.ids for e in t.encode_batch(texts, add_special_tokens=False)]


def golden(t, texts):
    plain, trusted = encode(t, texts, True), encode(t, texts, False)
    digests = [hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()[:16] for ids in encode(t, list(blocks()), True)]
    return {"blocks": digests, "plain": plain, "trusted": {str(i): b for i, (a, b) in enumerate(zip(plain, trusted)) if a != b}}


def write_gz(path, value):
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, compresslevel=9) as f:
        f.write(data)
    with open(path, "wb") as f:
        f.write(raw.getvalue())
    print(path, os.path.getsize(path))


def render(text, messages, add_generation, **values):
    """As transformers' apply_chat_template, without a clock."""
    def fail(message):
        raise jinja2.exceptions.TemplateError(message)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = fail
    return env.from_string(text).render(messages=messages, add_generation_prompt=add_generation, **values)


CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def jinja_texts(folder, model, config):
    """The models' own templates by name; chatml is nobody's."""
    texts = {"chatml": CHATML, "smollm": gguf.GGUFReader(model).fields["tokenizer.chat_template"].contents(), "qwen3": config["chat_template"]}
    for name in ("qwen2", "qwen2.5", "qwen3-thinking", "llama3", "llama3.1", "llama3.2"):
        with open(f"{folder}/{name}.jinja", encoding="utf-8", newline="") as f:
            texts[name] = f.read()
    return texts


def template_goldens(texts, tokenizers):
    """(our template, the name of the Jinja text, its values, the tokenizer that the ids are of or None)."""
    cases = [("chatml", "chatml", {}, None), ("smollm", "smollm", {}, "smollm2"), ("qwen2", "qwen2", {}, None), ("qwen2.5", "qwen2.5", {}, "qwen3"), ("qwen3", "qwen3", {}, "qwen3"),
             ("qwen3-no-think", "qwen3", {"enable_thinking": False}, "qwen3"), ("qwen3-thinking", "qwen3-thinking", {}, "qwen3"), ("llama3", "llama3", {}, None), ("llama3.1", "llama3.1", {}, None), ("llama3.1", "llama3.2", {}, None)]
    no_tools = {"chatml", "smollm", "qwen2", "llama3"}
    out = []
    for name, jinja, values, vocabulary in cases:
        for i, messages in enumerate(conversations()):
            if name in no_tools and any(m["role"] == "tool" for m in messages):
                continue
            as_jinja = [dict(m, role="system" if m["role"] == "developer" else m["role"]) for m in messages]
            for add_generation in (True, False):
                text = render(texts[jinja], as_jinja, add_generation, bos_token="<|begin_of_text|>", **values)
                case = {"template": name, "jinja": jinja, "conversation": i, "add_generation": add_generation, "text": text}
                if vocabulary:
                    case["ids"] = encode(tokenizers[vocabulary], [text], False)[0]
                out.append(case)
    return {"conversations": conversations(), "cases": out}


def main():
    p = argparse.ArgumentParser()
    for name in ("model", "package", "fixtures"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--templates", help="the folder of NAME.jinja")
    args = p.parse_args()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    definition, config = read_package(args.package)
    tokenizers = {"smollm2": smollm2(args.model, digits), "gpt-2": smollm2(args.model, byte_level), "qwen3": qwen3(definition), "llama-bpe": qwen3(definition, llama=True)}
    texts = strings()
    nfc = normalizers.NFC()
    normalised = {str(i): nfc.normalize_str(t) for i, t in enumerate(texts) if nfc.normalize_str(t) != t}
    print(len(texts), "strings")
    write_gz(f"{args.fixtures}/tokenizer/strings.json.gz", {"strings": texts, "nfc": normalised})
    for name, t in tokenizers.items():
        write_gz(f"{args.fixtures}/tokenizer/{name}.json.gz", golden(t, texts))
    if args.templates:
        templates = jinja_texts(args.templates, args.model, config)
        write_gz(f"{args.fixtures}/template/goldens.json.gz", template_goldens(templates, tokenizers))


if __name__ == "__main__":
    main()
