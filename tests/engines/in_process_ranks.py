"""What each rank does in the tests of vLLM in the trainer's own processes."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from prime_megatron.errors import RunError, StopRequested
from prime_megatron.rollout.engine import Completion
from prime_megatron.types import Bucket
from tests.engines.tiny import END, buckets, largest_gap, requests, write
from tests.support.engine_oracle import engine_tensors


def serve(settings: str, a: str, b: str) -> dict[str, Any]:
    """Two folders' weights into the engine of this rank, and what it answers with them; the process's own state before
    and after the engine was made; a call that one rank ends; wrong tensors."""
    from prime_megatron.config import TrainConfig
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.run.engines import build_engine

    config = TrainConfig.model_validate_json(settings)
    topology = start_megatron(config.parallel, seed=3, backend="gloo", timeout_s=100)
    before = _state()
    engine = build_engine(config, topology, (END,))
    found: dict[str, Any] = {"undisturbed": _state() == before, "differing": [], "gaps": [], "answers": []}
    for version, model in ((0, a), (1, b)):
        _publish(engine, config, model, version)
        found["differing"] += _differing(engine, config, model)
        heard: list[Completion] = []
        made = engine.generate(requests(6), heard.append)
        assert sorted(c.request.key.draw for c in heard) == list(range(6)) and [c.request for c in made] == requests(6)
        found["gaps"].append(largest_gap(model, made))
        found["answers"].append([list(c.token_ids) for c in made])
        engine.sleep(1)
        engine.wake({"weights"})
        engine.wake({"kv_cache"})
    found["stopped"] = _stopped(engine)
    found["again"] = [list(c.token_ids) for c in engine.generate(requests(6))] == found["answers"][-1]
    found["errors"] = _errors(engine, b) if engine.named_targets() is None else []
    total = torch.ones(1)
    dist.all_reduce(total)  # the trainer's own group is as it was
    found["ranks"] = int(total)
    engine.close()
    engine.close()
    dist.all_reduce(total)
    return found


def _publish(engine: Any, config: Any, model: str, version: int) -> None:
    from prime_megatron.families.read import read_config
    from prime_megatron.run.engines import layout_of

    weights = load_file(Path(model) / "model.safetensors")
    targets = engine.named_targets()
    if targets is None:
        engine.update_weights(buckets(weights, 3, version), version)
    else:
        tensor = config.rollout.tensor
        write(targets, layout_of(config, read_config(model))[dist.get_rank() % tensor], weights)
        engine.update_weights((), version)
    assert engine.version == version


def _differing(engine: Any, config: Any, model: str) -> list[str]:
    """Parameters in vLLM's own model that are not the folder's, cut and fused in numpy."""
    from prime_megatron.families.read import read_config

    arrays = {name: value.numpy() for name, value in load_file(Path(model) / "model.safetensors").items()}
    family, tensor = read_config(model), config.rollout.tensor
    rank = dist.get_rank() % tensor
    wanted = engine_tensors(family, arrays, tensor, rank)
    held = {name: value.numpy() for name, value in engine._driver.parameters().items()}
    assert wanted.keys() == held.keys()
    wrong = []
    for name, value in wanted.items():
        rows = value.shape[0]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):  # what pads the vocabulary is nobody's
            rows = max(0, min(rows, family.vocab - rank * rows))
        if not np.array_equal(held[name][:rows], value[:rows]):
            wrong.append(name)
    return wrong


def _stopped(engine: Any) -> str:
    """What every rank raises when the first of a replica does at its second response."""
    heard = 0

    def stop(completion: Completion) -> None:
        nonlocal heard
        heard += 1
        if heard == 2:
            raise StopRequested("enough")

    try:
        engine.generate(requests(6, max_tokens=30), stop if engine._member.tensor_rank == 0 else None)
    except StopRequested as error:
        return str(error)
    return "not stopped"


def _errors(engine: Any, model: str) -> list[str]:
    """An unknown tensor, one that does not come, one that arrives changed; then all is well again."""
    weights = load_file(Path(model) / "model.safetensors")
    errors = []
    lacking = {name: value for name, value in weights.items() if name != "model.norm.weight"}
    for kind in (iter([Bucket(["nope"], [torch.zeros(3)], 2)]), buckets(lacking, 2, 2), _spoilt(engine, weights)):
        try:
            engine.update_weights(kind, 2)
        except RunError as error:
            errors.append(str(error))
        assert engine.version == -1
    engine.update_weights(buckets(weights, 2, 3), 3)
    assert largest_gap(model, engine.generate(requests(3))) < 1e-4
    return errors


def _spoilt(engine: Any, weights: dict[str, torch.Tensor]) -> Iterator[Bucket]:
    """All tensors; one is changed on the last rank after the trainer has counted it."""
    load = engine._driver.load_tensors

    def changed(named: list[tuple[str, torch.Tensor]]) -> None:
        last = dist.get_rank() == dist.get_world_size() - 1
        load([(n, t + 1 if last and n == "model.norm.weight" else t) for n, t in named])

    engine._driver.load_tensors = changed
    yield from buckets(weights, 2, 2)
    engine._driver.load_tensors = load


def _state() -> list[Any]:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    rng = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return [handlers, rng, torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype()]
