"""A model folder without weights: a tokenizer of single bytes and a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|end|>", "<|turn|>", "<|close|>", "<|start|>")
VOCABULARY = 300
TURNS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
THOUGHTS_CUT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
"""Leaves out what answers thought, and opens a thought for the next one."""
THOUGHTS_KEPT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.reasoning_content is defined %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Thoughts are a field; enable_thinking=false writes an empty one."""
TOOLS = (
    "{% if tools %}<|turn|>tools\n{{ tools | tojson }}<|close|>\n{% endif %}"
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<call>{{ c.function.arguments | tojson }}</call>{% endfor %}{% endif %}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def make_chat_folder(
    folder: Path,
    template: str | None = TURNS,
    *,
    eos: str | None = "<|close|>",
    named: Sequence[str] = (),
    dress: str | None = None,
    plain_close: bool = False,
) -> str:
    """Write it; returns its path.

    Args:
        eos: the tokenizer's end of sequence.
        named: the ends in generation_config.json.
        dress: what the tokenizer adds to a text, "$A" being the text.
        plain_close: "<|close|>" is a token that is not special.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token in SPECIAL if not (plain_close and token == "<|close|>")])
    backend.add_tokens(["<|close|>", "<think>", "</think>"])
    if dress is not None:
        ids = [(token, backend.token_to_id(token)) for token in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(single=dress, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<|end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": VOCABULARY}))
    if named:
        ends = [backend.token_to_id(token) for token in named]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return str(folder)
