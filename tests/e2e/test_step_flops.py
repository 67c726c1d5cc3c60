"""A step runs what is necessary and no more, and leaves the parameters that a step which shares nothing leaves."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.config import TrainConfig, UpdateOrder
from prime_megatron.mcore.role import TrainResult
from prime_megatron.run.assemble import open_parts
from prime_megatron.run.parts import Parts
from prime_megatron.step.batch import StepBatch
from prime_megatron.step.plan import OldLogprobs
from prime_megatron.step.prm import train_prm
from prime_megatron.trainer import PrimeTrainer
from prime_megatron.types import Scores
from tests.support import flops
from tests.support.ranks import run_ranks
from tests.support.toy import make_model, make_prompts, merge, settings

STEPS = 2
LR = 1e-3


class Unshared(PrimeTrainer):
    """Computes everything in a pass of its own: old log-probs of all tokens, the KL term's reference, PRM scores."""

    def __init__(self, config: TrainConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        self.plan = dataclasses.replace(self.plan, old_logprobs=OldLogprobs.all, shared_reference=False)

    def update_prm(self, batch: StepBatch, scores: Scores, *, learns: bool) -> tuple[Scores, TrainResult | None]:
        """The PRM's scores of each mini-batch in a pass before its update, where the update's own forward served."""
        if self.config.prm.update is not UpdateOrder.after:
            return super().update_prm(batch, scores, learns=learns)
        prm = self.parts.roles.prm
        assert prm is not None
        scored_T = torch.zeros(batch.num_local_tokens)
        result = None
        for mini in batch.prm:
            scored_T += prm.logprobs(mini.micro, batch.num_local_tokens).logprobs_T
            one = dataclasses.replace(batch, prm=(mini,))
            result = train_prm(prm, one, scores.ref_logprobs_T, None, self.config.prm)
        return scores.with_prm(scored_T), result


def measure(kind: str, config_json: str) -> dict[str, Any]:
    """Forwards of every step, and the parameters afterwards, of one schedule on one rank."""
    config = TrainConfig.model_validate_json(config_json)
    with open_parts(config, resume=None, overwrite=False) as parts:
        trainer = (Unshared if kind == "unshared" else PrimeTrainer)(config, parts)
        forwards = [flops.step_forwards(trainer, index) for index in range(1, STEPS + 1)]
        roles = {"policy": parts.roles.policy, "prm": parts.roles.prm}
        params = {
            f"{role}.{name}": tensor.detach().clone()
            for role, model in roles.items()
            for (_, name), tensor in model.params().items()
        }
    return {"forwards": forwards, "params": params}


def measure_all(configs: str) -> dict[str, Any]:
    """The trainer, then the unshared one, on every config."""
    torch.distributed.destroy_process_group()  # each run makes groups of its own
    del os.environ["RANK"]
    results: dict[str, Any] = {}
    for figure, config in json.loads(configs).items():
        for kind in ("shared", "unshared"):
            settled = merge(config, {"run": {"output_dir": f"{config['run']['output_dir']}/{figure}-{kind}"}})
            results[f"{figure}-{kind}"] = measure(kind, json.dumps(settled))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every schedule, shared and unshared."""
    folder: Path = tmp_path_factory.mktemp("flops")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl")
    replay = flops.make_recording(folder / "recording.jsonl", steps=STEPS, vocab=60)
    # Adam divides by the gradient's size: with its default eps the step of a tiny gradient is lr times the sign of
    # rounding noise.
    optimizer = {"lr": LR, "eps": 1e-4}
    base = settings(
        model,
        prompts,
        folder / "out",
        models={"policy": {"optimizer": optimizer}, "prm": {"optimizer": optimizer}},
        rollout={"engine": "replay", "replay": replay, "prompts_per_step": flops.PROMPTS},
    )
    configs = {figure: merge(base, flops.schedule(*how[:2])) for figure, how in flops.SCHEDULES.items()}
    (found,) = run_ranks(measure_all, 1, json.dumps(configs), timeout_s=280.0)
    return found


@pytest.mark.parametrize("figure", flops.SCHEDULES)
def test_flops_are_those_of_the_plan(figure: str, results: Any) -> None:
    _, _, floor = flops.SCHEDULES[figure]
    for forwards in results[f"{figure}-shared"]["forwards"]:
        assert 0.99 * floor <= forwards <= 1.01 * floor
    # Policy and PRM learn (3 each), everything else is a pass of its own: old log-probs, two references, PRM scores.
    for forwards in results[f"{figure}-unshared"]["forwards"]:
        assert 0.99 * 10.0 <= forwards <= 1.01 * 10.0


@pytest.mark.parametrize("figure", flops.SCHEDULES)
def test_parameters_are_those_of_the_unshared_step(figure: str, results: Any) -> None:
    shared, unshared = (results[f"{figure}-{kind}"]["params"] for kind in ("shared", "unshared"))
    assert {name.split(".")[0] for name in shared} == {"policy", "prm"}
    for name, value in shared.items():
        difference = float((value - unshared[name]).abs().max())
        assert difference <= 1e-6, f"{name}: {difference}"


def test_schedules_differ(results: Any) -> None:
    """The comparison above would see a pass that was left out wrongly."""
    single, double = (results[f"forwards_{kind}_1-shared"]["params"] for kind in ("single", "double"))
    policy = [name for name in single if name.startswith("policy.")]
    assert max(float((single[name] - double[name]).abs().max()) for name in policy) > 1e-4
