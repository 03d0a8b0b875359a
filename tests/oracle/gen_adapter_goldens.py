#!/usr/bin/env python3
"""Low-rank adapters as PEFT saves them, and what PEFT computes with them on the tiny models of tests/fixtures/hf.

    gen_adapter_goldens.py --models tests/fixtures/hf --out tests/fixtures/adapter

Writes a directory per adapter (adapter_config.json, adapter_model.safetensors) and goldens.json as gen_hf_goldens.py does.
"""
import argparse
import os
import random
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from gen_hf_goldens import PROMPT, VOCAB
from gen_model_goldens import TINY_GREEDY, answer, write

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name -> (base model, configuration)
ADAPTERS = {
    "llama-all": ("llama-bf16", dict(r=4, lora_alpha=8, target_modules=ALL)),
    "llama-ranks": ("llama-bf16", dict(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 5})),
    "qwen2-rslora": ("qwen2-f32-tied", dict(r=3, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_rslora=True)),
    "qwen3-one-layer": ("qwen3-bf16", dict(r=4, lora_alpha=16, target_modules=["k_proj", "up_proj"], layers_to_transform=[1])),
}


def make(name, models, out):
    base, config = ADAPTERS[name]
    path = os.path.join(out, name)
    shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(sum(name.encode()))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(os.path.join(models, base), dtype=torch.float32),
                           LoraConfig(task_type="CAUSAL_LM", **config))
    for parameter in (p for key, p in model.named_parameters() if "lora_" in key):
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(path)
    os.remove(os.path.join(path, "README.md"))
    return path


def golden(name, models, path):
    base = AutoModelForCausalLM.from_pretrained(os.path.join(models, ADAPTERS[name][0]), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, path).eval()
    source = random.Random(name)
    return answer(model, name, [source.randrange(VOCAB) for _ in range(PROMPT)], TINY_GREEDY)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    goldens = {}
    with torch.no_grad():
        for name in ADAPTERS:
            goldens[name] = golden(name, args.models, make(name, args.models, args.out))
            print(name, sorted(os.listdir(os.path.join(args.out, name))), goldens[name]["greedy"])
    write(args.out, "goldens.json", goldens)


if __name__ == "__main__":
    main()
