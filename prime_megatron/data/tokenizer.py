"""The model's tokenizer: loaded from its folder, checked against its vocabulary, with its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prime_megatron.data.chat import DEFAULT_OPTIONS, ChatOptions, ChatTemplate
from prime_megatron.data.ends import find_ends
from prime_megatron.data.messages import Message
from prime_megatron.data.thoughts import common_beginning, learned_text
from prime_megatron.errors import InputError
from prime_megatron.strict_json import read_json

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
Tools = Sequence[Mapping[str, Any]]


class OpenThought(InputError):
    """An answer that would be learned inside a thought that the generation prompt opens and the answer never closes."""


_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Tokenizer:
    """Text to ids and back, and chats to text."""

    def __init__(
        self,
        hf: PreTrainedTokenizerBase,
        folder: str,
        eos_token_ids: tuple[int, ...],
        options: ChatOptions = DEFAULT_OPTIONS,
        told: tuple[str, ...] = (),
    ) -> None:
        self.hf = hf
        self.folder = folder
        self.eos_token_ids = eos_token_ids
        """Ids that end a response; the first is the one written behind supervised responses without a template."""
        self.told = told
        """What a run says at its start: what ends a response, and a warning where the folder disagrees with itself."""
        self.pad_token_id: int = hf.pad_token_id if hf.pad_token_id is not None else eos_token_ids[0]
        self._template = ChatTemplate(hf, folder, options)
        self._prefix = _prefix_of(hf)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self._template.there

    @property
    def control_token_ids(self) -> set[int]:
        """Ids that no text is encoded to, such as those that begin and end turns."""
        return {*self.hf.all_special_ids, *self.hf.added_tokens_decoder}

    def name_of(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        return str(self.hf.convert_ids_to_tokens(token_id))

    def encode(self, text: str) -> list[int]:
        """Token ids of text, nothing added; control tokens written in the text are read as such."""
        return self.hf.encode(text, add_special_tokens=False)

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
        """Text of token ids, spaces as they are; special tokens left out are also those that end a response."""
        ids = list(token_ids)
        if skip_special_tokens and ids and ids[-1] in self.eos_token_ids:
            ids = ids[:-1]
        text = self.hf.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def encode_chat(self, messages: Sequence[Message], tools: Tools = ()) -> tuple[str, list[int]]:
        """(text, token ids) of a prompt, ready for the answer; the text of its messages never becomes a control token.

        Raises:
            InputError: no template for a chat that needs one, one that refuses the chat or does not write what the row
                has; a control token in a message, where the config refuses them.
        """
        self._template.check_fields(messages, tools)
        guarded, mark = self._template.guard(messages)
        pieces = self._template.pieces(self._template.render(guarded, tools, add_generation_prompt=True), mark)
        return "".join(piece for piece, _ in pieces), self._prompt_ids(pieces)

    def encode_answer(self, messages: Sequence[Message], tools: Tools = ()) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids) of a chat whose last message is the assistant's, end of sequence included.

        The prompt is what a rollout generates from. The response is what the template writes of the whole chat minus
        its longest common beginning with that prompt (see `learned_text`), cut behind its first end of a response.

        Raises:
            OpenThought: the answer fits not into the thought that the prompt opens.
            InputError: as `encode_chat`; an answer that goes on behind a token that ends responses.
        """
        self._template.check_fields(messages, tools)
        guarded, mark = self._template.guard(messages)
        prompt = self._template.render(guarded[:-1], tools, add_generation_prompt=True)
        response = self._learned(prompt, guarded, tools) if self.has_template else guarded[-1].content
        prompt_ids = self._prompt_ids(self._template.pieces(prompt, mark))
        ids = self._encode(self._template.pieces(response, mark))
        ends = [index for index, token in enumerate(ids) if token in self.eos_token_ids]
        if not ends:
            return prompt_ids, [*ids, self.eos_token_ids[0]]
        if self.decode(ids[ends[0] + 1 :]).strip():
            raise InputError(
                f"the answer goes on behind {self.hf.convert_ids_to_tokens(ids[ends[0]])!r}, which ends a response; "
                "take it out of the content"
            )
        return prompt_ids, ids[: ends[0] + 1]

    def _learned(self, prompt: str, messages: Sequence[Message], tools: Tools) -> str:
        whole = self._template.render(messages, tools, add_generation_prompt=False)
        before = self._template.render(messages[:-1], tools, add_generation_prompt=False)
        answer, start = messages[-1], common_beginning(prompt, before)
        text = learned_text(prompt, whole, answer.content, start, fields=bool(answer.fields))
        if text is None:
            raise OpenThought(
                f"{self.folder}: the chat template opens a thought in the prompt that the answer does not close; give "
                "the answer's thought, or use a template (or data.template_kwargs) that opens none"
            )
        return text

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain prompt, which no template wraps: what the tokenizer begins a text with, and the text."""
        return [*self._prefix, *self.encode(text)]

    def with_options(self, options: ChatOptions) -> Tokenizer:
        """The same tokenizer, its chats rendered otherwise. Raises InputError: an argument that no template reads."""
        return Tokenizer(self.hf, self.folder, self.eos_token_ids, options, self.told)

    def _prompt_ids(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        # A template writes its own begin-of-sequence token.
        return self._encode(pieces) if self.has_template else [*self._prefix, *self._encode(pieces)]

    def _encode(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of rendered text; guarded control tokens as the text that they are."""
        return [
            id_
            for piece, guarded in pieces
            if piece
            for id_ in (self._encode_as_text(piece) if guarded else self.encode(piece))
        ]

    def _encode_as_text(self, token: str) -> list[int]:
        ids = self.hf.encode(token, add_special_tokens=False, split_special_tokens=True)
        if self.hf.convert_tokens_to_ids(token) in ids:  # a slow tokenizer, or one without the option
            ids = [*self.encode(token[:1]), *self.encode(token[1:])]
        return ids

    def contains(self, text: str, vocab_size: int) -> Tensor:
        """Tokens that contain the text, bool [vocab_size]."""
        table_V = torch.zeros(vocab_size, dtype=torch.bool)
        ids = sorted(id_ for id_ in self.hf.get_vocab().values() if id_ < vocab_size)
        for token in ids:
            table_V[token] = text in self.decode([token], skip_special_tokens=False)
        return table_V

    def step_end_table(self, delimiter: str, vocab_size: int) -> Tensor:
        """Tokens whose text contains the delimiter, bool [vocab_size].

        Raises:
            InputError: no token contains it, so that no step would ever end.
        """
        table_V = self.contains(delimiter, vocab_size)
        if not delimiter or not table_V.any():
            raise InputError(
                f"prm.step_delimiter {delimiter!r}: no token of {self.folder} contains it; "
                "choose a text that one token can hold"
            )
        return table_V


def load_tokenizer(
    folder: str,
    vocab_size: int | None = None,
    *,
    trust_remote_code: bool = False,
    options: ChatOptions = DEFAULT_OPTIONS,
) -> Tokenizer:
    """The tokenizer of an HF model folder.

    A folder with a tokenizer.json is read by that file alone: transformers 5 otherwise picks a class by model_type,
    and its Qwen2Tokenizer turns every text into [] when the tokenizer.json is not byte-level BPE.

    Args:
        folder: HF model folder.
        vocab_size: rows of the model's embedding; None: read from the folder's config.json.
        trust_remote_code: let transformers run code from the folder.
        options: how chats are rendered.

    Raises:
        InputError: no such folder, no readable tokenizer, ids beyond the vocabulary, no end-of-sequence token,
            arguments that the template does not read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: no such model folder; models.policy.path must name an HF folder on this machine")
    if vocab_size is None:
        vocab_size = model_vocab_size(folder)
    if not trust_remote_code and not any((path / name).is_file() for name in VOCABULARY_FILES):
        # transformers 5 makes an empty tokenizer of such a folder.
        raise InputError(f"{folder}: no tokenizer files ({', '.join(VOCABULARY_FILES)}); copy them from the model")
    for name in _SETTINGS:
        if (path / name).is_file():
            read_json(path / name)  # so that a damaged one is named
    try:
        if (path / "tokenizer.json").is_file() and not trust_remote_code:
            hf: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise whatever the damage leads to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: cannot load a tokenizer ({reason}); check its tokenizer files") from None
    if not isinstance(hf.model_max_length, int | float):
        raise InputError(f"{folder}/tokenizer_config.json: model_max_length is not a number")
    largest = max(hf.get_vocab().values(), default=-1)
    if largest < 0:
        raise InputError(f"{folder}: the tokenizer has no tokens")
    if largest >= vocab_size:
        raise InputError(
            f"{folder}: the tokenizer does not match the model: it has token id {largest}, "
            f"the model's vocabulary ends at {vocab_size - 1} (vocab_size {vocab_size}); use the model's own tokenizer"
        )
    ends = find_ends(path, ChatTemplate(hf, folder, options), vocab_size)
    told = [ends.describe({id_: name for name, id_ in hf.get_vocab().items()})]
    told += [f"warning: {ends.warning}"] if ends.warning else []
    return Tokenizer(hf, folder, ends.token_ids, options, tuple(told))


def _prefix_of(hf: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text of its own accord (begin of sequence). What it puts behind is left out: an
    end of sequence has no place between a prompt and its answer."""
    plain, dressed = hf.encode("a", add_special_tokens=False), hf.encode("a", add_special_tokens=True)
    starts = (i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain)
    return dressed[: next(starts, 0)]


def model_vocab_size(folder: str) -> int:
    """vocab_size in the folder's config.json. Raises InputError when there is none."""
    size = read_json(Path(folder) / "config.json").get("vocab_size")
    if not isinstance(size, int):
        raise InputError(f"{folder}/config.json: no vocab_size; it must be an HF model folder")
    return size
