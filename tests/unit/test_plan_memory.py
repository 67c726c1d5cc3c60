"""The memory model: what stands in which phase, by arithmetic of its own; and the advice where a run does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prime_megatron.config import PackingConfig, ParallelConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.families.count import ChunkParameters, RankParameters, num_parameters, rank_parameters
from prime_megatron.families.read import read_config
from prime_megatron.kernels.head_chunks import tokens_within
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.activations import Activations
from prime_megatron.plan.buffers import buffers_of
from prime_megatron.plan.fit import CONTEXT_BYTES, Device, check_fit, check_memory
from prime_megatron.plan.memory import MemoryPlan, micro_batches, plan_memory
from prime_megatron.plan.pieces import pieces_on_device
from prime_megatron.plan.roles import role_memory, stage_memory
from tests.support.public_models import PARAMETERS, make_folder

GIB = 2**30


def configured(folder: str, **sections: Any) -> TrainConfig:
    values = {
        "run": {"output_dir": "out", "steps": 1},
        "models": {"policy": {"path": folder}},
        "data": {"train": ["x.jsonl"]},
        "packing": {"max_tokens": 4096},
    }
    return TrainConfig.model_validate_json(json.dumps(values | sections))


def planned(config: TrainConfig, folder: str, world_size: int, device_bytes: float | None) -> MemoryPlan:
    return plan_memory(config, {folder: read_config(folder)}, world_size, device_bytes)


def phases(plan: MemoryPlan) -> dict[str, dict[str, float]]:
    return {phase.name: dict(phase.parts) for phase in plan.phases}


@pytest.mark.parametrize("name", PARAMETERS)
def test_public_models_have_their_published_size(name: str, tmp_path: Path) -> None:
    assert num_parameters(read_config(make_folder(tmp_path, name))) == PARAMETERS[name]


def test_a_trained_role_by_dtype_and_sharding() -> None:
    """700 and 300 dense elements shared by 2 x 3 ranks, 600 of an expert by 3: 24 ranks, tensor 4, expert 8.

    Megatron's buffers by hand. Dense: 300, then 700 from 320 (the next multiple of 64) to 1020, padded to 1152 = 3 x
    lcm(6, 128); each of six ranks owns 192, of which the second lacks 20 and the last all beyond 1020. Experts: 600 of
    768 = 2 x lcm(3, 128).
    """
    params = RankParameters(0, (ChunkParameters((700, 300), (600,), None),))
    sizes = ParallelSizes(24, tensor=4, context=3, expert=8)
    assert (sizes.data, sizes.expert_data) == (2, 3)
    layout = ParallelConfig(tensor=4, context=3, expert=8, sequence=True)
    stage = stage_memory(params, layout, sizes, "bfloat16", trained=True)
    assert (stage.dense, stage.experts) == ((192, 172, 192, 192, 192, 60), (256, 256, 88))
    memory = stage.largest(sizes)
    assert (memory.weights, memory.gradients) == (2 * 1920, 4 * 1920)
    assert (memory.optimizer, memory.main_weights, memory.step) == (12 * 448, 4 * 448, 4 * 448)
    assert memory.at_start == 6 * 1920 + 4 * 448
    assert stage.of(sizes.coordinates(23), sizes).main_weights == 4 * (60 + 88)
    whole = layout.model_copy(update={"distributed_optimizer": False})
    memory = role_memory(params, whole, sizes, "float32", trained=True)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.main_weights) == (6400, 6400, 12800, 0)
    assert role_memory(params, layout, sizes, "bfloat16", trained=False).total == 3200


def test_buckets_close_where_megatron_closes_them() -> None:
    """Overlapped gradients cut the first stage's buffer at 40 million elements; a copied embedding is apart."""
    sizes = ParallelSizes(2)
    params = RankParameters(0, (ChunkParameters((1000, 30_000_000, 10_000_001), (), 0),))
    plain = buffers_of(params, ParallelConfig(), sizes).dense
    assert plain.numel == (40_000_128 + 1024)  # 10,000,001 to 10,000,064 and 30,000,000 behind, then the embedding
    overlapped = buffers_of(params, ParallelConfig(overlap_grad_reduce=True), sizes).dense
    assert overlapped.numel == plain.numel and sum(overlapped.shards) == 40_001_001
    alone = RankParameters(0, (ChunkParameters((1000, 30_000_000, 10_000_001), (), None),))
    assert buffers_of(alone, ParallelConfig(), sizes).dense.numel == 40_001_152
    cut = buffers_of(alone, ParallelConfig(overlap_grad_reduce=True), sizes).dense
    assert cut.numel == 40_000_128 + 1024 and cut.shards[0] - cut.shards[1] != 0


def test_every_phase_of_a_7b_trio(tmp_path: Path) -> None:
    """tensor 4 of 8 GPUs, written out: three models, an SGLang engine on every GPU, 4,096 tokens a micro-batch."""
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    layout = {"tensor": 4, "sequence": True}
    sglang = {"memory_fraction": 0.6}
    stay = configured(folder, parallel=layout, rollout={"sglang": sglang})
    away = configured(folder, parallel=layout | {"offload": "generation"}, rollout={"sglang": sglang})
    card = 80 * GIB
    h, q, k, f, layers, vocab = 3584, 3584, 512, 18944, 28, 152064
    # Per layer on one of four ranks: products split by four, norms on every rank; every bias follows its product.
    per_layer = ((q + 2 * k) * (h + 1) + q * h + 3 * f * h) // 4 + 2 * h
    params = layers * per_layer + 2 * (vocab // 4) * h + h
    weights, gradients, optimizer = 2 * params, 4 * params, 12 * params / 2
    resident = {"weights": 3 * weights, "gradients": 2 * gradients, "optimizer": 2 * optimizer}
    tokens = 4096
    kept = 2 * (4 * h / 4 + (3 * q + 3 * k + 3 * f) / 4) + 4 * (2 / 4 + q / 128 / 4)
    logits = 4 * 4096 * vocab / 4
    head = 2 * tokens * (h / 4 + 3 * h) + logits
    update = tokens * (layers * kept + 2 * h / 4) + head + 2 * (vocab / 4) * h
    asleep, beyond = 1400 * 2**20, 2050 * 2**20
    engine_weights = 2 * PARAMETERS["Qwen2.5-Math-7B"]
    tensor = 2 * vocab * h

    found = phases(planned(away, folder, 8, card))
    assert found["rollout"] == {"engine": pytest.approx(0.6 * card + beyond)}
    assert found["score"] == pytest.approx(
        resident | {"activations": max(head, tokens * kept), "engine asleep": asleep}
    )
    for phase in ("PRM update", "policy update"):
        assert found[phase] == pytest.approx(resident | {"activations": update, "engine asleep": asleep}, rel=1e-6)
    assert found["reshard"] == pytest.approx(
        {"weights": weights, "buckets": 2 * tensor, "engine's weights": engine_weights + beyond}
    )
    assert found["save"] == pytest.approx(resident | {"gathered tensor": 2 * tensor, "engine": asleep})

    found = phases(planned(stay, folder, 8, card))
    assert found["rollout"] == pytest.approx(resident | {"engine": 0.6 * card + beyond})
    assert found["reshard"]["optimizer"] == pytest.approx(2 * optimizer)
    assert found["save"]["engine"] == pytest.approx(0.6 * card + beyond)

    plan = planned(
        configured(folder, parallel=layout | {"offload": "phases"}, rollout={"sglang": sglang}), folder, 8, card
    )
    found, main = phases(plan), 4 * params / 2
    assert list(found) == ["start", "rollout", "score", "PRM update", "policy update", "reshard", "save"]
    assert found["start"] == pytest.approx({"weights": weights, "gradients": gradients, "optimizer": main})
    assert found["score"] == pytest.approx(
        {"weights": weights, "next model's weights": weights, "activations": max(head, tokens * kept),
         "engine asleep": asleep}
    )  # fmt: skip
    alone = {"weights": weights, "gradients": gradients, "activations": update, "engine asleep": asleep}
    assert found["PRM update"] == pytest.approx(alone | {"next model's weights": weights}, rel=1e-6)
    assert found["policy update"] == pytest.approx(alone, rel=1e-6)
    assert found["save"] == pytest.approx(
        {"weights": weights, "optimizer": optimizer, "gathered tensor": 2 * tensor, "engine": asleep}
    )
    host = {mode: planned(config, folder, 8, card).host for mode, config in (("none", stay), ("generation", away))}
    saving = weights + 12 * params
    assert host["none"].copies == 0 and host["none"].saving == pytest.approx(2 * saving)
    assert host["generation"].copies == plan.host.copies == pytest.approx(3 * weights + 2 * optimizer)
    assert plan.host.saving == pytest.approx(saving), "one after the other"


def test_pieces_of_an_optimizer_step(tmp_path: Path) -> None:
    """Two pieces of 1 GiB, or of the state of embedding or output layer, and the square roots of one."""
    family = read_config(make_folder(tmp_path, "Qwen2.5-Math-7B"))
    for tensor, rows in ((1, 152064), (2, 76032), (8, None)):
        parallel = ParallelConfig(tensor=tensor)
        sizes = ParallelSizes.from_config(parallel, tensor)
        memory = role_memory(rank_parameters(family, sizes, 0), parallel, sizes, "bfloat16", trained=True)
        piece = 2**30 if rows is None else 12 * rows * 3584
        assert pieces_on_device(memory, family, sizes, 0) == pytest.approx(2 * piece + piece / 3)
    assert pieces_on_device(role_memory(rank_parameters(family, sizes, 0), parallel, sizes, "bfloat16", trained=False),
                            family, sizes, 0) == 0.0  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_takes_its_share_of_the_whole_device(engine: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    config = configured(folder, rollout={"engine": engine, engine: {"memory_fraction": 0.3}})
    assert phases(planned(config, folder, 1, 100 * GIB))["rollout"]["engine"] == pytest.approx(30 * GIB + 2050 * 2**20)


def test_host_memory_that_a_node_has_not(tmp_path: Path) -> None:
    """28 bytes of state and 2 of a frozen model for each of 7.6e9 parameters; a checkpoint in the background takes 14
    for each of both learners, model by model for one."""
    folder, size = make_folder(tmp_path, "Qwen2.5-Math-7B"), PARAMETERS["Qwen2.5-Math-7B"]
    for asynchronous, params in ((True, 58), (False, 44)):
        sections = {"parallel": {"offload": "phases"}, "checkpoint": {"asynchronous": asynchronous}}
        config = configured(folder, **sections, launch={"host_memory": "250GiB"})
        plan = planned(config, folder, 1, None)
        assert plan.host.copies + plan.host.saving == pytest.approx(params * size)
        with pytest.raises(
            InputError, match=rf"^launch\.host_memory: 1 ranks of a node take {params * size / GIB:.1f} GiB"
        ):
            check_memory(config)
    check_memory(config.model_copy(update={"launch": config.launch.model_copy(update={"host_memory": "350GiB"})}))


def test_the_embedded_engine_takes_weights_and_rows(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    rollout = {"engine": "embedded", "max_concurrent": 16, "sampling": {"max_response_tokens": 1000}}
    config = configured(folder, rollout=rollout, data={"train": ["x"], "max_prompt_tokens": 24})
    cache = 16 * 1024 * 2 * 28 * 4 * 128 * 2
    found = phases(planned(config, folder, 1, None))
    assert found["rollout"]["engine"] == pytest.approx(2 * PARAMETERS["Qwen2.5-Math-7B"] + cache)
    assert "engine asleep" not in found["score"]


def waiting(name: str, where: Path, parallel: dict[str, Any], world: int, stage: int, micro: int) -> float:
    """Layers of all micro-batches that a stage keeps, from what its update plans: the head and one layer's backward
    are the same in every case."""
    config = ParallelConfig.model_validate_json(json.dumps(parallel))
    sizes = ParallelSizes.from_config(config, world)
    family = read_config(make_folder(where, name))
    activations = Activations(family, config, sizes, 2, 1024, micro, 1.0, value_head=True)
    residual = 2 * family.hidden * 1024
    # A value head's workspace is below one layer's backward here.
    kept = activations.training(stage) - activations.layer
    chunks = parallel.get("virtual_pipeline", 1)
    forwards = {
        1: min(micro, sizes.pipeline - stage),
        2: min(2 * micro, 2 * (sizes.pipeline - stage - 1) + sizes.pipeline + 1),
    }[chunks]
    return (kept - forwards * residual) / activations.kept()


def test_layers_in_flight_over_a_pipeline(tmp_path: Path) -> None:
    """One forward one backward: stage s of p runs p - s micro-batches ahead; interleaved (arXiv 2104.04473) more."""
    name = "Qwen2.5-72B-Instruct"
    even = [waiting(name, tmp_path, {"pipeline": 4}, 4, stage, 64) for stage in range(4)]
    np.testing.assert_allclose(even, [80, 60, 40, 20])
    few = [waiting(name, tmp_path, {"pipeline": 4}, 4, stage, 2) for stage in range(4)]
    np.testing.assert_allclose(few, [40, 40, 40, 20])
    uneven = {"pipeline": 4, "pipeline_layers": [14, 22, 22, 22]}
    np.testing.assert_allclose([waiting(name, tmp_path, uneven, 4, stage, 64) for stage in range(4)], [56, 66, 44, 22])
    chunked = {"pipeline": 4, "virtual_pipeline": 2}
    np.testing.assert_allclose(
        [waiting(name, tmp_path, chunked, 4, stage, 64) for stage in range(4)], [110, 90, 70, 50]
    )


@pytest.mark.parametrize(
    ("packing", "tokens", "count"),
    [
        ({}, 12000, 1),
        ({"max_tokens": 4000}, 4000, 3),
        ({"max_tokens": 5500}, 5500, 3),
        ({"max_tokens": 500}, 2000, 6),  # a longer sequence stands alone
        ({"max_sequences": 2}, 4000, 3),
        ({"max_tokens": 100000}, 12000, 1),
        ({"max_tokens": 4000, "padded": True}, 12000, 1),
        ({"max_tokens": 4000, "padded": True, "max_sequences": 3}, 6000, 2),
    ],
)
def test_largest_micro_batch_of_six_sequences(packing: dict[str, Any], tokens: int, count: int) -> None:
    assert micro_batches(PackingConfig(**packing), 6, 2000) == (tokens, count)


def test_chunks_of_the_head() -> None:
    assert tokens_within(2_000_000_000, 16384, 152064) == 3072
    assert tokens_within(5_000_000_000, 16384, 152064) == 8192
    assert tokens_within(5_000_000_000, 100, 152064) == 100


DEVICE = Device("--device-memory", 80 * GIB)


def advice(folder: str, world_size: int, device: Device = DEVICE, **sections: Any) -> str:
    """The keys that a refusal names; what it names is tried: it fits, and with one key less it does not."""
    config = configured(folder, **sections)
    families = {folder: read_config(folder)}
    with pytest.raises(InputError) as refusal:
        check_fit(config, families, world_size, device)
    line = str(refusal.value)
    assert "\n" not in line and line.startswith(f"{device.key}: the ")
    _, found, keys = line.partition("; set ")
    if not found:
        return line.rpartition("; ")[2]
    changes = dict(part.split("=") for part in keys.split(" and "))

    def changed(names: list[str]) -> TrainConfig:
        values = json.loads(config.model_dump_json())
        for name in names:
            *sections, last = name.split(".")
            target = values
            for section in sections:
                target = target[section]
            text = changes[name]
            target[last] = json.loads(text) if text[0].isdigit() else text
        return TrainConfig.model_validate_json(json.dumps(values))

    check_fit(changed(list(changes)), families, world_size, device)
    for name in changes:
        with pytest.raises(InputError):
            check_fit(changed([other for other in changes if other != name]), families, world_size, device)
    return keys


EIGHT = {"processes_per_node": 8}


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({"rollout": {"sglang": {"memory_fraction": 0.8}}}, "parallel.offload=generation"),
        ({"packing": {"max_tokens": 24576}, "parallel": {"offload": "generation"}}, "parallel.recompute=full"),
        ({"packing": {"max_tokens": 524288}, "parallel": {"recompute": "full", "offload": "generation"}},
         "packing.max_tokens=131072"),
        ({"rollout": {"sglang": {"memory_fraction": 0.95}}, "parallel": {"offload": "generation"}},
         "rollout.sglang.memory_fraction=0.8"),
    ],
)  # fmt: skip
def test_the_key_that_makes_a_7b_run_fit(sections: dict[str, Any], keys: str, tmp_path: Path) -> None:
    sections["parallel"] = {"tensor": 4, "sequence": True, **sections.get("parallel", {})}
    assert advice(make_folder(tmp_path, "Qwen2.5-Math-7B"), 8, launch=EIGHT, **sections) == keys


def test_two_keys_where_one_is_not_enough(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    sections = {"packing": {"max_tokens": 16384}, "rollout": {"sglang": {"memory_fraction": 0.7}}}
    found = advice(folder, 8, launch=EIGHT, parallel={"tensor": 2, "sequence": True}, **sections)
    assert found == "parallel.offload=phases"


def test_experts_are_spread_wider(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen3-30B-A3B")
    parallel = {"tensor": 4, "pipeline": 2, "sequence": True, "expert": 4, "offload": "generation"}
    launch = {"nodes": 4, "processes_per_node": 8}
    assert advice(folder, 32, launch=launch, parallel=parallel, rollout={"tensor": 4}) == "parallel.expert=8"


def test_nothing_helps_on_too_few_gpus(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-72B-Instruct")
    assert advice(folder, 8, launch=EIGHT) == "use more GPUs (launch.nodes), or smaller models"


def test_an_engine_share_below_its_weights_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    config = configured(
        folder, launch=EIGHT, parallel={"tensor": 8, "offload": "generation"},
        rollout={"sglang": {"memory_fraction": 0.1}},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"the engine's share \(0\.1\) is 8\.0 GiB, and its weights with one sequence"):
        check_fit(config, {folder: read_config(folder)}, 8, DEVICE)


def test_the_limit_is_95_percent_less_the_context() -> None:
    assert Device("launch.device_memory", 100 * GIB).usable == pytest.approx(0.95 * (100 * GIB - CONTEXT_BYTES))


def test_the_launcher_refuses_what_does_not_fit(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    check_memory(configured(folder))  # nothing is said of the device
    check_memory(configured(str(tmp_path / "absent"), launch={"device_memory": "1GiB"}))
    with pytest.raises(InputError, match=r"launch\.device_memory: the save needs "):
        check_memory(configured(folder, launch={"device_memory": "80GiB"}))
