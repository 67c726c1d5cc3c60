"""Token ends against what decoding every beginning of a response gives."""

from __future__ import annotations

import itertools
import os
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prime_megatron.data.token_ends import TokenEnds

TEXTS = ["hello world, the quick\nbrown fox", "中文 and 😀👍🏽 naïve café\n", "  two spaces ", ""]


def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen's: a character beyond ASCII may be in several tokens, and a token may end one and begin the next."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS * 5, trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: the space of a text's first token is dropped, bytes stand for unknown characters."""
    words = ["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"helowrd,tquickbnfx\nasp", "▁hello", "▁world", "▁the"]
    vocab = {word: index for index, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="<unk>")


def oracle(hf: PreTrainedTokenizerFast, ids: list[int], text: str) -> list[int]:
    """How far the text of each beginning agrees with the whole one; never falling."""
    starts = [hf.decode(ids[: count + 1], skip_special_tokens=True) for count in range(len(ids))]
    ends = [len(os.path.commonprefix([start, text])) for start in starts]  # noqa: RUF071
    return [*itertools.accumulate(ends[:-1], max), len(text)]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_ends_are_those_of_every_beginning(make) -> None:  # type: ignore[no-untyped-def]
    hf = make()
    ends_of = TokenEnds(hf)
    for text in TEXTS[:3]:
        ids = [*hf.encode(text, add_special_tokens=False), hf.eos_token_id]
        decoded = hf.decode(ids, skip_special_tokens=True)
        assert ends_of(ids, decoded) == oracle(hf, ids, decoded), text
    words = [hf.convert_tokens_to_ids(word) for word in ("▁hello", "▁world", "▁the", "\n", "▁", "h")]
    if make is sentence_piece:
        assert ends_of(words, "hello world the\n h") == [5, 11, 15, 16, 17, 18]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_any_tokens_have_ends_that_never_fall(make) -> None:  # type: ignore[no-untyped-def]
    """Of a policy that writes bytes which are no text: ends stay in order, and are right again behind them."""
    hf, draw = make(), random.Random(0)
    ends_of = TokenEnds(hf)
    tail = hf.encode("the quick\nbrown fox " * 5, add_special_tokens=False)
    for _ in range(200):
        ids = [draw.randrange(len(hf)) for _ in range(draw.randrange(1, 40))] + tail
        text = hf.decode(ids, skip_special_tokens=True)
        ends = ends_of(ids, text)
        assert ends == sorted(ends) and len(ends) == len(ids) and ends[-1] == len(text)
        assert ends[-3:] == oracle(hf, ids, text)[-3:]
        bytes_alone = ids[: -len(tail)]
        text = hf.decode(bytes_alone, skip_special_tokens=True)
        assert ends_of(bytes_alone, text)[-1] == len(text)


def test_a_cut_text_and_no_tokens() -> None:
    hf = byte_level()
    ids = hf.encode("hello world", add_special_tokens=False)
    assert TokenEnds(hf)(ids, "hello w")[-1] == 7
    assert max(TokenEnds(hf)(ids, "hello w")) == 7
    assert TokenEnds(hf)([], "") == []
