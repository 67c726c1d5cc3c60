"""Tensors that a folder holds in another form than the family's rules name them: experts in one tensor a layer
(transformers 5), a tied embedding under the output layer's name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from prime_megatron.families import FAMILIES
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.read import OUTPUT_LAYER

EMBEDDING = "model.embed_tokens.weight"

_FUSED = re.compile(r"^model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class View:
    """Rows ``start`` to ``start + rows`` of one expert's matrix in a stored tensor [experts, rows, columns]; no expert:
    the stored tensor itself under another name."""

    stored: str
    stored_shape: tuple[int, ...]
    expert: int | None
    start: int
    rows: int


def fused_views(family: FamilyConfig, stored: Collection[str]) -> dict[str, View]:
    """A view for every tensor of the family's rules that the folder has in another form only.

    Of a tied model's two names either will do (``PreTrainedModel.tie_weights``).

    gate_up_proj [experts, gate rows then up rows, hidden] and down_proj [experts, hidden, expert ffn] of a layer; where
    they are used, Mixtral's router goes by mlp.gate.weight (``MixtralExperts`` in transformers 5).
    """
    views: dict[str, View] = {}
    if family.tied and EMBEDDING not in stored and OUTPUT_LAYER in stored:
        views[EMBEDDING] = View(OUTPUT_LAYER, (family.vocab, family.hidden), None, 0, family.vocab)
    if not family.experts or not any(_FUSED.match(name) for name in stored):
        return views
    ffn, hidden = family.expert_ffn, family.hidden
    both, down = (family.experts, 2 * ffn, hidden), (family.experts, hidden, ffn)
    rules = {rule.param.rpartition("mlp.")[2]: rule for rule in FAMILIES[family.architecture].rules(family)}
    gate_up = rules["experts.local_experts.{expert}.linear_fc1.weight"].sources
    (second,) = rules["experts.local_experts.{expert}.linear_fc2.weight"].sources
    (router,) = rules["router.weight"].sources
    for layer in range(family.layers):
        at = f"model.layers.{layer}.mlp."
        for expert in range(family.experts):
            places = [
                (source.name, f"{at}experts.gate_up_proj", both, i * ffn, ffn) for i, source in enumerate(gate_up)
            ]
            places.append((second.name, f"{at}experts.down_proj", down, 0, hidden))
            for template, name, shape, start, rows in places:
                own = template.format(layer=layer, expert=expert)
                if own not in stored and name in stored:
                    views[own] = View(name, shape, expert, start, rows)
        own, name = router.name.format(layer=layer), f"{at}gate.weight"
        if own not in stored and name in stored:
            views[own] = View(name, (family.experts, hidden), None, 0, family.experts)
    return views
