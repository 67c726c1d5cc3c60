"""`make rehearse-large`: shapes larger than any example's, rehearsed on this machine.

    python tools/rehearse_large.py [--update] [NAME ...]

Model folders with a config.json alone and configs are written below runs/rehearse-large. Without --update ranks are
counted and the reshard is planned; with it an update runs on a few ranks, too (minutes to an hour).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from prime_megatron.cli.main import main as verb

FOLDER = Path("runs/rehearse-large")
COMMON: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "dense-405b": {
        **COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384,
        "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256,
        "attention_bias": False, "mlp_bias": False,
    },
    "experts-235b-a22b": {
        **COMMON, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288,
        "max_position_embeddings": 40960, "mlp_only_layers": [], "moe_intermediate_size": 1536, "norm_topk_prob": True,
        "num_attention_heads": 64, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False,
        "vocab_size": 151936,
    },
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    # 72 nodes of 8: 7 layers a stage.
    "dense-405b": {"tensor": 8, "pipeline": 18, "sequence": True, "recompute": "full", "offload": "generation"},
    # 16 nodes of 8: 11 or 12 layers a stage, 16 experts of each on a rank.
    "experts-235b-a22b": {
        "tensor": 4, "pipeline": 8, "expert": 8, "expert_tensor": 1, "sequence": True, "recompute": "full",
        "offload": "generation",
    },
}  # fmt: skip
NODES = {"dense-405b": 72, "experts-235b-a22b": 16}


def config_of(name: str) -> Path:
    """Write the model's folder and a config of its layout; returns the config."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name]))
    values = {
        "run": {"output_dir": str(FOLDER / f"{name}-out"), "steps": 1},
        "models": {"policy": {"path": str(folder)}, "dtype": "bfloat16"},
        "data": {"train": ["prompts.jsonl"], "max_prompt_tokens": 1024},
        "rollout": {"engine": "sglang", "tensor": 8},
        "parallel": LAYOUTS[name],
        "packing": {"max_tokens": 4096},
        "launch": {"nodes": NODES[name], "processes_per_node": 8, "device_memory": "139GiB"},
    }
    path = FOLDER / f"{name}.yaml"
    path.write_text(json.dumps(values))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Rehearse layouts of very large models.", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--update", action="store_true", help="run an update on a few ranks, too")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:
        parser.error(f"{unknown[0]}: not one of {', '.join(MODELS)}")
    for name in args.names or MODELS:
        begun = time.monotonic()
        print(f"== {name} on {8 * NODES[name]} GPUs")
        code = verb(["rehearse", str(config_of(name)), *([] if args.update else ["--no-update"])])
        if code:
            return code
        print(f"== {name}: {time.monotonic() - begun:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
