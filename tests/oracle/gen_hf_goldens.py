#!/usr/bin/env python3
"""Tiny random models as transformers saves them, and what transformers computes with them.

    gen_hf_goldens.py --out tests/fixtures/hf

Writes a directory per model (config.json, tokenizer.json, safetensors in one file or in shards) and goldens.json in the format of
gen_model_goldens.py. Logits are computed in float32 from the saved (rounded) weights. AWQ and GPTQ directories are packed here, as the
formats' documentation says, from random codes, zeros and scales; transformers gets the weights that numpy dequantises in double.
"""
import argparse
import json
import os
import random
import shutil

import numpy
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (AutoModelForCausalLM, GenerationConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen3Config)

from gen_model_goldens import TINY_GREEDY, answer, write
from gen_tokenizer_goldens import LLAMA3

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
VOCAB, PROMPT = 320, 64  # of the matrices; the tokenizer has fewer
BOS, EOS, END, TOOL = "<|begin_of_text|>", "<|endoftext|>", "<|im_end|>", "<tool_call>"
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=128, initializer_range=0.2)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)

# name -> (configuration, dtype, largest shard, kind of tokenizer)
MODELS = {
    "llama-bf16": (LlamaConfig(**SIZES), torch.bfloat16, "1GB", "smollm"),
    "llama3-f16-sharded-tied": (LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), torch.float16, "30KB", "llama3"),
    "llama-linear-f32": (LlamaConfig(**SIZES, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)), torch.float32, "1GB", "gpt2"),
    "mistral-bf16": (MistralConfig(**SIZES, sliding_window=None), torch.bfloat16, "1GB", "llama3"),
    "qwen2-f32-tied": (Qwen2Config(**SIZES, tie_word_embeddings=True), torch.float32, "1GB", "qwen2"),
    "qwen2-yarn-bf16-sharded": (Qwen2Config(**SIZES, rope_parameters=YARN), torch.bfloat16, "30KB", "qwen2"),
    "qwen3-bf16": (Qwen3Config(**SIZES, head_dim=32), torch.bfloat16, "1GB", "qwen2"),
}


# ---- AWQ and GPTQ

QUANT_SIZES = dict(SIZES, hidden_size=64, intermediate_size=96)
AWQ = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")
GPTQ = dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=False)

# name -> (configuration, kind of tokenizer, quantization_config)
QUANTISED = {
    "awq-qwen2": (Qwen2Config(**QUANT_SIZES), "qwen2", AWQ),
    "gptq-v1-llama": (LlamaConfig(**QUANT_SIZES), "smollm", GPTQ),
    "gptq-v1-qwen3-one-group": (Qwen3Config(**QUANT_SIZES, head_dim=32), "qwen2", dict(GPTQ, sym=True, group_size=-1, checkpoint_format="gptq")),
    "gptq-v2-qwen2-act-order": (Qwen2Config(**QUANT_SIZES), "qwen2", dict(GPTQ, desc_act=True, checkpoint_format="gptq_v2")),
}
# Matrices that read the same input were quantised together: one order.
TOGETHER = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values, axis, order):
    """Eight 4-bit values along axis into a 32-bit word, the i-th nibble from value order[i]."""
    v = numpy.moveaxis(values.astype(numpy.uint32), axis, -1)
    v = v.reshape(v.shape[:-1] + (v.shape[-1] // 8, 8))
    words = sum(v[..., order[i]] << numpy.uint32(4 * i) for i in range(8)).astype(numpy.uint32)
    return numpy.ascontiguousarray(numpy.moveaxis(words, -1, axis)).view(numpy.int32)


def quantised_matrix(n_out, n_in, quant, group_of, rng):
    """Random (tensors by suffix, the matrix in double)."""
    n_groups = int(group_of.max()) + 1
    codes = rng.integers(0, 16, (n_in, n_out))
    v1 = quant["quant_method"] == "gptq" and quant.get("checkpoint_format") != "gptq_v2"
    zeros = numpy.full((n_groups, n_out), 8) if quant.get("sym") else rng.integers(1 if v1 else 0, 17 if v1 else 16, (n_groups, n_out))
    scales = rng.uniform(0.005, 0.02, (n_groups, n_out)).astype(numpy.float16)
    matrix = (codes - zeros[group_of]) * scales.astype(numpy.float64)[group_of]
    if quant["quant_method"] == "awq":
        tensors = {"qweight": pack(codes, 1, AWQ_ORDER), "qzeros": pack(zeros, 1, AWQ_ORDER), "scales": scales}
    else:
        plain = list(range(8))
        tensors = {"qweight": pack(codes, 0, plain), "qzeros": pack(zeros - (1 if v1 else 0), 1, plain), "scales": scales,
                   "g_idx": group_of.astype(numpy.int32)}
    return tensors, matrix.T


def make_quantised(name, out):
    config, kind, quant = QUANTISED[name]
    path = os.path.join(out, name)
    shutil.rmtree(path, ignore_errors=True)
    rng = numpy.random.default_rng(sum(name.encode()))
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, len(name))
    for p in model.parameters():  # the rest is stored in F16; RoPE's buffers are not
        p.data = p.data.half().float()
    save_tokenizer(kind, path)
    stored, orders = {}, {}
    for key, p in model.state_dict().items():
        stem, last = key.removesuffix(".weight"), key.split(".")[-2]
        if not last.endswith("_proj"):
            stored[key] = p.half().numpy()
            continue
        if key.endswith(".bias"):
            stored[key] = p.half().numpy()
            continue
        n_out, n_in = p.shape
        group = quant["group_size"] if quant["group_size"] > 0 else n_in
        layer = ".".join(key.split(".")[:4]) + TOGETHER.get(last, last)
        group_of = orders.setdefault(layer, rng.permutation(n_in) // group if quant.get("desc_act") else numpy.arange(n_in) // group)
        tensors, matrix = quantised_matrix(n_out, n_in, quant, group_of, rng)
        stored.update({f"{stem}.{suffix}": t for suffix, t in tensors.items()})
        p.copy_(torch.from_numpy(matrix.astype(numpy.float32)))
    save_file({k: numpy.ascontiguousarray(v) for k, v in stored.items()}, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    settings = json.loads(config.to_json_string(use_diff=False)) | {"dtype": "float16", "architectures": [type(model).__name__],
                                                                    "quantization_config": quant}
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        json.dump(settings, f, indent=2, sort_keys=True)
    return model.eval()


# ---- directories


def byte_alphabet():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tokenizer(kind):
    names = byte_alphabet() + ["ab", "abc", "\u0120a", "er"]
    t = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("a", "b"), ("ab", "c"), ("\u0120", "a"), ("e", "r")],
                             ignore_merges=kind == "llama3"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.pre_tokenizer = {"smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]), "gpt2": words,
                       "llama3": split(LLAMA3), "qwen2": split(QWEN2)}[kind]
    if kind == "qwen2":
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (BOS, EOS, "<|im_start|>", END)])
    t.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind == "llama3":
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, t.token_to_id(BOS))])])
    return t


def save_tokenizer(kind, out):
    t = tokenizer(kind)
    fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=BOS if kind == "llama3" else None, eos_token=END)
    fast.chat_template = CHATML
    fast.save_pretrained(out)
    return t


def randomise(model, seed):
    """What initialisation leaves at 0 or 1: biases and gains."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data = (0.0 if name.endswith("bias") else 1.0) + 0.5 * torch.rand(p.shape, generator=g) - 0.25


def make(name, out):
    config, dtype, shard, kind = MODELS[name]
    path = os.path.join(out, name)
    shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(sum(name.encode()))
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, len(name))
    t = save_tokenizer(kind, path)
    model.generation_config = GenerationConfig(eos_token_id=[t.token_to_id(END), t.token_to_id(EOS)])
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    return path


def golden(name, model):
    source = random.Random(name)
    ids = [source.randrange(VOCAB) for _ in range(PROMPT)]
    return answer(model, name, ids, TINY_GREEDY)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    goldens = {}
    for name in list(MODELS) + list(QUANTISED):
        model = make_quantised(name, out) if name in QUANTISED else \
            AutoModelForCausalLM.from_pretrained(make(name, out), dtype=torch.float32).eval()
        goldens[name] = golden(name, model)
        print(name, sorted(os.listdir(os.path.join(out, name))), goldens[name]["greedy"])
    write(out, "goldens.json", goldens)


if __name__ == "__main__":
    main()
