"""The critic's model: hidden states and a [1, H] head, on the last stage, sharded like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks


def _run(folder: str, layout: dict[str, Any], out: str) -> Any:
    from prime_megatron.mcore.model import unwrap
    from prime_megatron.mcore.weights import export_hf

    topology, chunks = mcore_models.start(layout, folder, value_head=True)
    model = unwrap(chunks[-1])
    values = None
    if topology.is_last_stage:
        weight = model.head_weight()
        assert weight.shape == (1, model.family.hidden)
        assert not weight.any(), "a new head starts at zero"
        weight.data.fill_(0.5)
        assert not hasattr(model.output_layer, "weight")
    inputs = mcore_models.pack(mcore_models.sequences([5, 8]), topology, sequence_parallel=False)
    found: list[torch.Tensor] = []

    def score(index: int, hidden: torch.Tensor, model: Any) -> Any:
        found.append((hidden[:, 0] @ unwrap(model).head_weight().T).detach())
        return hidden.sum(), None

    with torch.no_grad():
        mcore_models.run(chunks, [inputs], score, train=False)
    if found:
        values = found[0]
    export_hf(chunks, out, topology, folder)
    mcore_models.restart()
    # The exported head is read again.
    _, chunks = mcore_models.start({}, out, value_head=True)
    assert torch.equal(unwrap(chunks[-1]).head_weight(), torch.full((1, 32), 0.5))
    return values


def test_value_head(tmp_path: Path) -> None:
    for name in ("qwen2", "qwen2_tied"):
        folder = tmp_path / name
        model = mcore_models.make_model(folder, name)
        for index, layout in enumerate(({}, {"pipeline": 2}, {"tensor": 2})):
            out = str(tmp_path / f"{name}{index}")
            world = 2 if layout else 1
            values = run_ranks(_run, world, str(folder), layout, out)[-1]
            with torch.no_grad():
                hidden = torch.cat([model.model(seq[None])[0][0] for seq in mcore_models.sequences([5, 8])])
            torch.testing.assert_close(values[:, 0], hidden.sum(-1) * 0.5, rtol=0, atol=2e-5)
            with safe_open(f"{out}/model.safetensors", framework="pt") as file:
                names = set(file.keys())
            assert "score.weight" in names
            assert "lm_head.weight" not in names
            assert names - {"score.weight"} == set(load_file(folder / "model.safetensors")) - {"lm_head.weight"}


def _values(folder: str, layout: dict[str, Any]) -> Any:
    """A critic's values of each token, from a folder with a head of its own."""
    from prime_megatron.config import OptimizerConfig, ParallelConfig
    from prime_megatron.mcore.critic import Critic
    from prime_megatron.mcore.initialize import start_megatron

    config = ParallelConfig(**layout)
    topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
    critic = Critic(folder, topology, config, dtype=torch.float32, optimizer=OptimizerConfig(), total_updates=1)
    inputs = mcore_models.pack(mcore_models.sequences([5, 8]), topology, sequence_parallel=False)
    found: list[torch.Tensor] = []

    def score(index: int, hidden: torch.Tensor, model: Any) -> Any:
        found.append((hidden[:, 0] @ critic.head().model.head_weight().T).detach())
        return hidden.sum(), None

    with torch.no_grad():
        mcore_models.run(critic.chunks, [inputs], score, train=False)
    return found[0]


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}])
def test_a_critic_from_a_sequence_classifier(tmp_path: Path, layout: dict[str, Any]) -> None:
    """transformers' own head: one label; two are refused by name."""
    import transformers

    sizes = mcore_models.make_model(tmp_path / "policy", "qwen2").config.to_dict()
    torch.manual_seed(2)
    classifier = transformers.Qwen2ForSequenceClassification(
        transformers.Qwen2Config(**{**sizes, "pad_token_id": 0}, num_labels=1)
    ).eval()
    classifier.save_pretrained(tmp_path / "critic")
    values = run_ranks(_values, 2 if layout else 1, str(tmp_path / "critic"), layout)[-1]
    with torch.no_grad():
        hidden = torch.cat([classifier.model(seq[None])[0][0] for seq in mcore_models.sequences([5, 8])])
        torch.testing.assert_close(values, classifier.score(hidden), rtol=0, atol=1e-5)
    classifier.score = torch.nn.Linear(32, 2, bias=False)
    classifier.save_pretrained(tmp_path / "critic")
    with pytest.raises(RuntimeError, match=r"tensor score.weight is \[2, 32\], config.json says \[1, 32\]"):
        run_ranks(_values, 1, str(tmp_path / "critic"), {})
