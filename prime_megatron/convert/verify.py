"""Whether a Hugging Face folder and a Megatron checkpoint hold the same model: the judge of both converters.

It shares no code with them: safetensors reads one side, torch's own checkpoint reader the other, and which row goes
where is written here once more, from the shapes in config.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from prime_megatron.convert.sides import EMBEDDING, OUTPUT_LAYER, HfSide, MegatronSide, Place
from prime_megatron.errors import InputError

Part = tuple[int, int, str, int]
"""Rows from, to of a parameter; the Hugging Face tensor and its first row there."""
_INNER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "mlp.linear_fc2.bias": "mlp.down_proj.bias",
}
_OUTER = {
    "embedding.word_embeddings.weight": EMBEDDING,
    "output_layer.weight": OUTPUT_LAYER,
    "decoder.final_layernorm.weight": "model.norm.weight",
    "value_head.weight": "score.weight",
}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_FREQUENCIES = re.compile(r"rotary_emb\.inv_freq$")
_ROWS = 4096


def compare(
    hf: Path, checkpoint: Path, on_bytes: Callable[[int], None], *, written: Path, narrowed: torch.dtype | None
) -> str:
    """Every value of the folder against every value of the checkpoint; returns one line that says what was found.

    written: the side that a converter made. narrowed: the dtype that the user asked for, so that values may differ by
    its rounding. Raises InputError, with the tensor's name: a value differs, or a tensor is on one side only.
    """
    with ExitStack() as stack:
        return _Judge(HfSide(hf, stack), MegatronSide(checkpoint), written, narrowed).run(on_bytes)


@dataclass
class _Judge:
    hf: HfSide
    checkpoint: MegatronSide
    written: Path
    narrowed: torch.dtype | None
    covered: Counter[str] = field(default_factory=Counter)
    """Values compared, by Hugging Face tensor."""
    largest: float = 0.0

    def run(self, on_bytes: Callable[[int], None]) -> str:
        for name, place, matrix in self.checkpoint.matrices():
            self._matrix(name, place, matrix)
            on_bytes(matrix.nbytes)
        for name in self.hf.names():
            missing = prod(self.hf.view(name).get_shape()) - self.covered[name]
            if missing and not (self.covered[name] == 0 and self._says_nothing(name)):
                raise InputError(f"{self.written}: {name}: {missing} values are on one side only")
        return f"largest change of a value: {self.largest:.3g}" if self.largest else "every value is the same"

    def _says_nothing(self, name: str) -> bool:
        """Whether this need not be in the checkpoint: rotary frequencies, which the converter has compared with those
        of config.json, and a tied model's copy of the embedding."""
        if _FREQUENCIES.search(name):
            return True
        if name != OUTPUT_LAYER or not self.hf.tied:
            return False
        head, embedding = self.hf.view(name), self.hf.view(EMBEDDING)
        blocks = (slice(start, start + _ROWS) for start in range(0, head.get_shape()[0], _ROWS))
        return all(torch.equal(head[rows].double(), embedding[rows].double()) for rows in blocks)

    def _matrix(self, name: str, place: Place, found: Tensor) -> None:
        """One layer's (and expert's) rows of a chunk, from row place.row and column place.column on."""
        padding = torch.ones(found.shape, dtype=torch.bool)
        for low, high, source, first in self._parts(place):
            start, end = max(low, place.row), min(high, place.row + found.shape[0])
            if start >= end:
                continue
            view = self.hf.view(source)
            theirs, mine = slice(first + start - low, first + end - low), slice(start - place.row, end - place.row)
            if found.dim() == 1:
                self._same(view[theirs], found[mine], source)
                padding[mine] = False
                continue
            width = max(0, min(view.get_shape()[1] - place.column, found.shape[1]))
            if width:
                columns = slice(place.column, place.column + width)
                self._same(view[theirs, columns], found[mine, :width], source)
                padding[mine, :width] = False
        if name not in _VOCABULARY and bool((found[padding] != 0).any()):
            raise InputError(f"{self.written}: {name}: values beyond the model's shape are on one side only")

    def _same(self, theirs: Tensor, stored: Tensor, source: str) -> None:
        """theirs: of the folder; stored: of the checkpoint."""
        self.covered[source] += theirs.numel()
        output, origin = (theirs, stored) if self.written == self.hf.folder else (stored, theirs)
        wide = torch.promote_types(output.dtype, origin.dtype)
        if _equal(output.to(wide), origin.to(wide)):
            return
        if self.narrowed is None or not _equal(origin.to(output.dtype), output):
            raise InputError(f"{self.written}: {source} differs from the original")
        change = (output.double() - origin.double()).abs()
        self.largest = max(self.largest, float(change.nan_to_num(0.0).max()))

    def _parts(self, place: Place) -> list[Part]:
        """The Hugging Face rows of one parameter, in its order."""
        if place.layer is None:
            if place.rest not in _OUTER:
                raise InputError(f"{self.checkpoint.folder}: {place.rest} is in no Hugging Face folder")
            return self._whole(_OUTER[place.rest])
        at = f"model.layers.{place.layer}."
        if place.rest.startswith("self_attention.linear_qkv.") and not place.rest.endswith("norm_weight"):
            return self._attention(at + "self_attn.", place.rest.rpartition(".")[2])
        if place.expert is None and place.rest in _INNER:
            return self._whole(at + _INNER[place.rest])
        mixtral = self.hf.config["model_type"] == "mixtral"
        at += "block_sparse_moe." if mixtral else "mlp."
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        at += "" if place.expert is None else f"experts.{place.expert}."
        _, linear, kind = place.rest.split(".")
        if linear == "router":
            return self._whole(f"{at}gate.weight")
        if linear == "linear_fc2":
            return self._whole(f"{at}{down}.{kind}")
        if place.half is not None:
            return self._whole(f"{at}{(gate, up)[place.half]}.{kind}")
        rows = self._rows(f"{at}{gate}.{kind}")
        return [(0, rows, f"{at}{gate}.{kind}", 0), (rows, 2 * rows, f"{at}{up}.{kind}", 0)]

    def _whole(self, name: str) -> list[Part]:
        return [(0, self._rows(name), name, 0)]

    def _attention(self, at: str, kind: str) -> list[Part]:
        """Megatron keeps, for each key-value head, its queries, its key, its value."""
        heads = self.hf.config["num_attention_heads"]
        query_rows = self._rows(f"{at}q_proj.{kind}")
        size = query_rows // heads
        groups = self._rows(f"{at}k_proj.{kind}") // size
        queries = query_rows // groups
        found: list[Part] = []
        for group in range(groups):
            start = group * (queries + 2 * size)
            found.append((start, start + queries, f"{at}q_proj.{kind}", group * queries))
            for place, letter in enumerate("kv"):
                row = start + queries + place * size
                found.append((row, row + size, f"{at}{letter}_proj.{kind}", group * size))
        return found

    def _rows(self, name: str) -> int:
        if name not in self.hf:
            raise InputError(f"{self.hf.folder}: {name} is missing, though {self.checkpoint.folder} has it")
        return int(self.hf.view(name).get_shape()[0])


def _equal(one: Tensor, two: Tensor) -> bool:
    """Bit for bit, NaN included."""
    one, two = (x.contiguous().reshape(-1).view(torch.uint8) for x in (one, two))
    return torch.equal(one, two)
