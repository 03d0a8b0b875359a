#!/usr/bin/env python3
"""What Hugging Face transformers says about our test models, from the same GGUF files.

    gen_model_goldens.py --model SmolLM2.gguf --tiny DIR --out tests/fixtures/model

Writes smollm2.json (the real model) and tiny.json (random weights: every architecture, RoPE scaling and
weight format). Everything is computed in float32 on the CPU from dequantised weights. Per prompt:
  ids       the prompt
  logprobs  log-probability of ids[1:], each given what precedes it
  greedy    the tokens of greedy decoding
  top       per greedy step the five most probable [id, log-probability, ...]
"""
import argparse
import hashlib
import json
import os
import random
import sys

import numpy
import torch
import transformers
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from prompts import smollm2_prompts

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
TINY_PROMPT, TINY_GREEDY, GREEDY = 96, 16, 32
CONTROL = 3

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def metadata(reader, key, default=None):
    field = reader.get_field(key)
    return default if field is None else field.contents()


def parameter_name(name):
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def unpermute(matrix, n_heads):
    """GGUF keeps llama's q and k so that a rotated pair lies side by side; transformers wants halves."""
    n_out = matrix.shape[0]
    return matrix.reshape(n_heads, n_out // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(matrix.shape)


def state_dict(reader, arch, n_heads, n_kv_heads):
    state = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if arch == "llama" and ".attn_q." in tensor.name:
            values = unpermute(values, n_heads)
        if arch == "llama" and ".attn_k." in tensor.name:
            values = unpermute(values, n_kv_heads)
        state[parameter_name(tensor.name)] = torch.from_numpy(numpy.ascontiguousarray(values))
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def rope_parameters(reader, arch, theta, tensors):
    kind = metadata(reader, f"{arch}.rope.scaling.type")
    rope = {"rope_type": "default", "rope_theta": theta}
    if kind in ("linear", "yarn"):
        rope.update(rope_type=kind, factor=float(metadata(reader, f"{arch}.rope.scaling.factor")))
    if kind == "yarn":
        rope["original_max_position_embeddings"] = metadata(reader, f"{arch}.rope.scaling.original_context_length")
    if "rope_freqs.weight" in tensors:  # as tests/support/tiny_model.c made it
        rope.update(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    return rope


def build_model(path):
    """The model of any supported GGUF file, by our own dequantisation."""
    reader = GGUFReader(path)
    arch = metadata(reader, "general.architecture")
    tensors = {t.name: t for t in reader.tensors}
    n_heads = metadata(reader, f"{arch}.attention.head_count")
    n_kv_heads = metadata(reader, f"{arch}.attention.head_count_kv", n_heads)
    dim = metadata(reader, f"{arch}.embedding_length")
    config = CONFIGS[arch](
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=dim,
        intermediate_size=metadata(reader, f"{arch}.feed_forward_length"),
        num_hidden_layers=metadata(reader, f"{arch}.block_count"),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=metadata(reader, f"{arch}.attention.key_length", dim // n_heads),
        max_position_embeddings=metadata(reader, f"{arch}.context_length"),
        rms_norm_eps=metadata(reader, f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_parameters=rope_parameters(reader, arch, metadata(reader, f"{arch}.rope.freq_base", 10000.0), tensors),
        tie_word_embeddings="output.weight" not in tensors,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state_dict(reader, arch, n_heads, n_kv_heads), strict=False)
    if unexpected or [m for m in missing if "rotary" not in m]:
        sys.exit(f"{path}: missing {missing}, unexpected {unexpected}")
    return model.eval()


def load_gguf(path):
    """The same through transformers' own GGUF reader."""
    directory, name = os.path.split(os.path.abspath(path))
    return AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32).eval()


@torch.no_grad()
def token_logprobs(model, ids, logits):
    out = []
    for i in range(0, len(ids) - 1, 256):
        rows = torch.log_softmax(logits[0, i : min(i + 256, len(ids) - 1)].double(), -1)
        out += [rows[k, ids[i + k + 1]].item() for k in range(rows.shape[0])]
    return [round(v, 5) for v in out]


@torch.no_grad()
def answer(model, name, ids, n_greedy):
    result = model(torch.tensor([ids]), use_cache=True)
    golden = {"name": name, "ids": ids, "logprobs": token_logprobs(model, ids, result.logits), "greedy": [], "top": []}
    for step in range(n_greedy):
        logprobs = torch.log_softmax(result.logits[0, -1].double(), -1)
        best = torch.topk(logprobs, 5)
        golden["greedy"].append(best.indices[0].item())
        golden["top"].append([v for i in range(5) for v in (best.indices[i].item(), round(best.values[i].item(), 5))])
        if step + 1 < n_greedy:
            token = torch.tensor([[golden["greedy"][-1]]])
            result = model(token, past_key_values=result.past_key_values, use_cache=True)
    return golden


def gguf_tokenizer(path):
    """SmolLM2's tokenizer from the file's own tables."""
    reader = GGUFReader(path)
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    types = metadata(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in metadata(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == CONTROL])
    return tokenizer


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_loaders_agree(theirs, ours, ids):
    with torch.no_grad():
        worst = (theirs(torch.tensor([ids])).logits - ours(torch.tensor([ids])).logits).abs().max().item()
    print(f"transformers' GGUF reader and ours differ by {worst:.2g} in a logit")
    if worst > 1e-3:
        sys.exit("they do not agree")


def smollm2(path):
    model, tokenizer = load_gguf(path), gguf_tokenizer(path)
    prompts = [(name, tokenizer.encode(text).ids) for name, text in smollm2_prompts(lambda t: len(tokenizer.encode(t).ids))]
    check_loaders_agree(model, build_model(path), prompts[0][1])
    answers = []
    for name, ids in prompts:
        answers.append(answer(model, name, ids, GREEDY))
        print(f"{name}: {len(ids)} tokens -> {tokenizer.decode(answers[-1]['greedy'])!r}")
    return {"sha256": sha256(path), "prompts": answers}


def tiny(directory):
    goldens = {}
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        n_vocab = len(metadata(GGUFReader(path), "tokenizer.ggml.tokens"))
        source = random.Random(name)
        ids = [source.randrange(n_vocab) for _ in range(TINY_PROMPT)]
        stem = name.removesuffix(".gguf")
        goldens[stem] = dict(answer(build_model(path), stem, ids, TINY_GREEDY), sha256=sha256(path))
        print(f"{stem}: greedy {goldens[stem]['greedy']}")
    return goldens


def write(out, name, golden):
    golden["made_with"] = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    with open(os.path.join(out, name), "w", encoding="utf-8") as f:
        json.dump(golden, f, separators=(",", ":"))
        f.write("\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    write(args.out, "tiny.json", tiny(args.tiny))
    write(args.out, "smollm2.json", smollm2(args.model))


if __name__ == "__main__":
    main()
