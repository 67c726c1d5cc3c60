"""The model's tokenizer: loaded from its folder, checked against its vocabulary, with its chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prime_megatron.data.rows import Message
from prime_megatron.errors import InputError

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


class Tokenizer:
    """Text to ids and back, and chats to text."""

    def __init__(self, hf: PreTrainedTokenizerBase, folder: str, eos_token_ids: tuple[int, ...]) -> None:
        self.hf = hf
        self.folder = folder
        self.eos_token_ids = eos_token_ids
        """Ids that end a response; the first is the one written after supervised responses without a template."""
        self.pad_token_id: int = hf.pad_token_id if hf.pad_token_id is not None else eos_token_ids[0]

    @property
    def has_template(self) -> bool:
        return self.hf.chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of plain text; special tokens written in the text are read as such."""
        return self.hf.encode(text, add_special_tokens=add_special_tokens)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """(token ids, where in the text each token begins, in characters) of plain text.

        Raises:
            InputError: a slow tokenizer, which does not say where its tokens are.
        """
        if not self.hf.is_fast:
            raise InputError(f"{self.folder}: steps need a tokenizer.json, which says where in the text a token is")
        encoded = self.hf(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids, spaces as they are."""
        text = self.hf.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat as the text the model reads.

        Without a chat template a single user message stands as it is (a base model continues the text); anything
        else has no meaning then and is refused.

        Raises:
            InputError: no template for a chat that needs one, or the template refuses the chat.
        """
        if not self.has_template:
            if len(messages) == 1 and messages[0].role == "user":
                return messages[0].content
            raise InputError(
                f"{self.folder}: the tokenizer has no chat template, and a chat of {len(messages)} messages "
                f"({', '.join(message.role for message in messages)}) needs one; add chat_template.jinja to the "
                "folder, or use rows of one user message and no data.system_prompt"
            )
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise InputError(f"{self.folder}: the chat template refuses a chat: {error}") from None
        assert isinstance(text, str)
        return text

    def encode_chat(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """(text, token ids) of a prompt, ready for the answer. Raises InputError as `render`."""
        text = self.render(messages, add_generation_prompt=True)
        # A template writes its own begin-of-sequence token.
        return text, self.encode(text, add_special_tokens=not self.has_template)

    def encode_answer(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids) of a chat whose last message is the assistant's, end of sequence included.

        The response is what the template writes for the last message after the generation prompt, cut behind its
        first end-of-sequence token; where the template rewrites the prompt once it is answered, the bare content.
        """
        prompt, prompt_ids = self.encode_chat(messages[:-1])
        response = messages[-1].content
        if self.has_template:
            whole = self.render(messages, add_generation_prompt=False)
            if whole.startswith(prompt) and response.strip() in whole[len(prompt) :]:
                response = whole[len(prompt) :]
        ids = self.encode(response)
        ends = [index for index, token in enumerate(ids) if token in self.eos_token_ids]
        ids = ids[: ends[0] + 1] if ends else [*ids, self.eos_token_ids[0]]
        return prompt_ids, ids

    def step_end_table(self, delimiter: str, vocab_size: int) -> Tensor:
        """Tokens whose text contains the delimiter, bool [vocab_size].

        Raises:
            InputError: no token contains it, so that no step would ever end.
        """
        table_V = torch.zeros(vocab_size, dtype=torch.bool)
        ids = sorted(id_ for id_ in self.hf.get_vocab().values() if id_ < vocab_size)
        for token in ids:
            table_V[token] = delimiter in self.decode([token], skip_special_tokens=False)
        if not delimiter or not table_V.any():
            raise InputError(
                f"prm.step_delimiter {delimiter!r}: no token of {self.folder} contains it; "
                "choose a text that one token can hold"
            )
        return table_V


def load_tokenizer(folder: str, vocab_size: int | None = None, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of an HF model folder.

    A folder with a tokenizer.json is read by that file alone: transformers 5 otherwise picks a class by model_type,
    and its Qwen2Tokenizer turns every text into [] when the tokenizer.json is not byte-level BPE.

    Args:
        folder: HF model folder.
        vocab_size: rows of the model's embedding; None: read from the folder's config.json.
        trust_remote_code: let transformers run code from the folder.

    Raises:
        InputError: no such folder, no readable tokenizer, ids beyond the vocabulary, no end-of-sequence token.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: no such model folder; models.policy.path must name an HF folder on this machine")
    if vocab_size is None:
        vocab_size = model_vocab_size(folder)
    if not trust_remote_code and not any((path / name).is_file() for name in VOCABULARY_FILES):
        # transformers 5 makes an empty tokenizer of such a folder.
        raise InputError(f"{folder}: no tokenizer files ({', '.join(VOCABULARY_FILES)}); copy them from the model")
    try:
        if (path / "tokenizer.json").is_file() and not trust_remote_code:
            hf: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise whatever the damage leads to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: cannot load a tokenizer ({reason}); check its tokenizer files") from None
    largest = max(hf.get_vocab().values(), default=-1)
    if largest < 0:
        raise InputError(f"{folder}: the tokenizer has no tokens")
    if largest >= vocab_size:
        raise InputError(
            f"{folder}: the tokenizer does not match the model: it has token id {largest}, "
            f"the model's vocabulary ends at {vocab_size - 1} (vocab_size {vocab_size}); use the model's own tokenizer"
        )
    return Tokenizer(hf, folder, end_token_ids(path, hf.eos_token_id))


def model_vocab_size(folder: str) -> int:
    """vocab_size in the folder's config.json. Raises InputError when there is none."""
    size = _read_json(Path(folder) / "config.json").get("vocab_size")
    if not isinstance(size, int):
        raise InputError(f"{folder}/config.json: no vocab_size; it must be an HF model folder")
    return size


def end_token_ids(path: Path, own: int | None) -> tuple[int, ...]:
    """What ends a response, the only place that says so: the tokenizer's end of sequence (``own``) first, then what
    generation_config.json names, and where that names none, config.json; as transformers' generate and the engines.

    Raises:
        InputError: none of the three names an end, or one names something else than token ids.
    """
    named: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if not named and (path / name).is_file():
            named = _ends_in(path / name)
    found = ([] if own is None else [own]) + named
    if not found:
        raise InputError(f"{path}: the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    return tuple(dict.fromkeys(found))


def _ends_in(path: Path) -> list[int]:
    value = _read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise InputError(f"{path}: eos_token_id = {value!r} is not a token id, or a list of them")
    return ids


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the folder must be an HF model folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value
