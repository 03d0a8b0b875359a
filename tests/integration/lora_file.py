"""Random adapters of the small real model, as PEFT lays them out."""
import json
import random
import struct

LAYERS, DIM, KV = 30, 576, 192  # of SmolLM2-135M


def write_peft(directory, seed, rank=4, **config):
    """A random adapter of the model's q and v projections, as PEFT lays it out."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", "target_modules": ["q_proj", "v_proj"]} | config))
    source, header, data = random.Random(seed), {}, b""
    for layer in range(LAYERS):
        for module, width in (("q_proj", DIM), ("v_proj", KV)):
            for half, shape in (("A", [rank, DIM]), ("B", [width, rank])):
                n = shape[0] * shape[1]
                values = struct.pack(f"<{n}f", *(source.uniform(-0.1, 0.1) for _ in range(n)))
                header[f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight"] = {
                    "dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
                data += values
    head = json.dumps(header).encode()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    return directory
