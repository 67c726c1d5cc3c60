"""What every hosted engine must do; test_sglang.py and test_vllm.py run these on real engines."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import as_slices
from prime_megatron.rollout.engine import Completion, Request, WeightsLost
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.recording import read_recording
from prime_megatron.types import Bucket
from tests.engines.tiny import (
    END,
    buckets,
    largest_gap,
    layout,
    make_biased_model,
    make_engine,
    make_model,
    publish,
    requests,
    segment,
    workers,
)
from tests.support import toy
from tests.support.ranks import run_ranks
from tests.support.runs import misread_rank, read_lines, train_rank

PARITY = 1e-4


def two_models(folder: Path) -> tuple[str, str]:
    """The same shape, other weights."""
    return make_model(folder / "a", 0), make_model(folder / "b", 1)


def check_generation(engine: ProcessEngine, a: str, b: str, tensor: int) -> None:
    """Updates arrive (twice, so that no prefix cache survives), log-probs are transformers', samples stream."""
    for version, model in ((0, a), (1, b)):
        publish(engine, model, version, tensor=tensor)
        assert engine.version == version
        heard: list[Completion] = []
        made = engine.generate(requests(8), heard.append)
        assert largest_gap(model, made) < PARITY
        assert sorted(c.request.key.draw for c in heard) == list(range(8))
        assert [c.request for c in made] == requests(8)
    for completion in made:
        ended = completion.token_ids[-1] == END
        assert completion.finish == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == 12
        assert END not in completion.token_ids[:-1]
    assert largest_gap(b, engine.generate(requests(4, temperature=0.5))) < PARITY
    greedy = [[c.token_ids for c in engine.generate(requests(4, greedy=True))] for _ in range(2)]
    assert greedy[0] == greedy[1]


def check_live_weights(engine: ProcessEngine, model: str, tensor: int) -> None:
    """The engine's memory holds the folder's tensors bit for bit, fused and cut as the engine has them."""
    weights = load_file(Path(model) / "model.safetensors")
    for rank, pieces in enumerate(layout(model, tensor)):
        live = segment(engine, rank)
        assert {piece.param for piece in pieces} == set(live), "the layout knows every parameter"
        for piece in pieces:
            held = live[piece.param][as_slices(piece.local)]
            assert torch.equal(held, weights[piece.hf_name][as_slices(piece.hf)]), piece.param


def check_sleep(engine: ProcessEngine, a: str, b: str, tensor: int) -> None:
    """Down, weights up, sync, cache up: the new weights answer. Waking or sleeping twice does no harm."""
    engine.sleep(1)
    engine.sleep(1)
    with pytest.raises(AssertionError):
        engine.generate(requests(1))
    engine.wake({"weights"})
    engine.wake({"weights"})
    publish(engine, b, 7, tensor=tensor)
    engine.wake({"kv_cache"})
    assert largest_gap(b, engine.generate(requests(4))) < PARITY
    restarts = engine.num_restarts
    for version in range(8, 16):  # as a run does: down as soon as the last response is there
        engine.generate(requests(8, max_tokens=3))
        engine.sleep(1)
        engine.wake({"weights"})
        publish(engine, a, version, tensor=tensor)
        engine.wake({"kv_cache"})
    assert largest_gap(a, engine.generate(requests(4))) < PARITY
    assert engine.num_restarts == restarts


def check_wrong_names(engine: ProcessEngine, model: str) -> None:
    """A tensor that the model has not, and one that does not come, stop the run by name; then all is well again."""
    weights = load_file(Path(model) / "model.safetensors")
    unknown = Bucket(["model.layers.0.nope.weight"], [torch.zeros(3)], 20)
    with pytest.raises(RunError, match="nope"):
        engine.update_weights(iter([unknown]), 20)
    partial = {name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}
    with pytest.raises(RunError, match=r"model\.norm\.weight"):
        engine.update_weights(buckets(partial, 2, 21), 21)
    with pytest.raises(AssertionError):
        engine.generate(requests(1))
    publish(engine, model, 22)
    assert largest_gap(model, engine.generate(requests(3))) < PARITY


def check_refusal(engine: ProcessEngine, model: str) -> None:
    """Weights that the engine does not take stop the run, whose engine is not started again and answers nothing; the
    next update is taken."""
    restarts = engine.num_restarts
    sent = engine._link._folder
    folder, sent.folder = sent.folder, sent.folder / "nowhere"
    weights = load_file(Path(model) / "model.safetensors")
    sent.write = lambda bucket: folder
    with pytest.raises(RunError, match=r"weight sync: SGLang refused update_weights_from_disk: .*nowhere"):
        engine.update_weights(buckets(weights, 2, 30), 30)
    assert engine.version == -1
    with pytest.raises(AssertionError):
        engine.generate(requests(1))
    sent.folder = folder
    del sent.write
    publish(engine, model, 31)
    assert largest_gap(model, engine.generate(requests(3))) < PARITY
    assert engine.num_restarts == restarts


def check_version(engine: ProcessEngine) -> None:
    """A response of other weights than the trainer thinks is refused."""
    true = engine._version
    engine._version = true + 1
    with pytest.raises(RunError, match=f"policy version {true}, not {true + 1}"):
        engine.generate(requests(2))
    engine._version = true
    assert len(engine.generate(requests(2))) == 2


def check_death(
    engine: ProcessEngine, model: str, *, hit: Callable[[int], None], patience_s: float, tensor: int = 1
) -> None:
    """The engine is hit when two of the responses are there: the batch is complete, nothing twice, weights right."""
    version = engine.version
    heard: list[Completion] = []
    hit_at: list[float] = []
    restarts = engine.num_restarts

    def on_finished(completion: Completion) -> None:
        heard.append(completion)
        if len(heard) == 2:
            assert engine.pid is not None
            hit_at.append(time.monotonic())
            hit(engine.pid)

    long = [*requests(2, max_tokens=2, step=3), *requests(24, max_tokens=200, step=4)]
    noticed: list[float] = []
    first = engine.pid

    def watch() -> None:
        while engine.pid == first:
            time.sleep(0.05)
        noticed.append(time.monotonic())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        made = engine.generate(long, on_finished)
    except WeightsLost:
        assert engine.named_targets() is None
        publish(engine, model, version, tensor=tensor)
        made = engine.generate(long, on_finished)
    watcher.join(timeout=patience_s + 60.0)
    assert noticed, "the responses were all there before the hit: it showed nothing"
    assert engine.num_restarts == restarts + 1
    assert noticed[0] - hit_at[0] < patience_s
    assert [c.request for c in made] == long
    counts = Counter(c.request.key for c in heard)
    assert set(counts) == {request.key for request in long}
    assert set(counts.values()) == {1}
    assert largest_gap(model, made) < PARITY


def check_death_in_mid_update(engine: ProcessEngine, model: str, version: int) -> None:
    """The engine is killed between two buckets: the update is lost as a whole, another process gets all of it."""
    weights = load_file(Path(model) / "model.safetensors")
    restarts = engine.num_restarts

    def interrupted() -> Iterator[Bucket]:
        for place, bucket in enumerate(buckets(weights, 3, version)):
            if place == 1:
                assert engine.pid is not None
                kill_one(engine.pid)
            yield bucket

    engine.update_weights(interrupted(), version)
    assert engine.version == -1
    publish(engine, model, version)
    assert engine.num_restarts == restarts + 1
    assert largest_gap(model, engine.generate(requests(4))) < PARITY


def check_end(engine: ProcessEngine) -> None:
    """No restart is left: the run stops, with the reason."""
    engine._limits = replace(engine._limits, max_restarts=0)
    with pytest.raises(RunError, match=r"rollout engine 0: .*process.* ended.*rollout\.max_restarts"):
        engine.generate(requests(4, max_tokens=200), lambda completion: kill_one(engine.pid or 0))


def kill_one(pid: int) -> None:
    """kill -9 of one process that computes, or of the engine's only one."""
    os.kill(workers(pid)[-1], signal.SIGKILL)


def stop_one(pid: int) -> None:
    """One process that computes hangs, or the engine's only one."""
    os.kill(workers(pid)[0], signal.SIGSTOP)


def check_training(engine: str, folder: Path, layout: str, **rollout: object) -> None:
    """Three steps on two ranks: after every sync the engine's log-probs are the trainer's. An engine is killed in the
    rollout of the second step: every batch is complete, no prompt lost or doubled."""
    model, prompts = toy.make_model(folder / "model", hidden=128), toy.make_prompts(folder / "prompts.jsonl")
    settings = toy.settings(
        model,
        prompts,
        folder / "run",
        parallel={layout: 2, "timeout_s": 900.0},
        rollout={
            "engine": engine,
            "start_timeout_s": 600.0,
            "record": str(folder / "groups.jsonl"),
            "sampling": {"max_response_tokens": 110},
            **rollout,
        },
    )
    assert run_ranks(train_and_kill, 2, json.dumps(settings), str(folder / "killed"), timeout_s=900.0) == [0, 0]
    assert (folder / "killed").read_text() == "step 2, engine started again"
    rows = read_lines(settings, "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    steps = read_recording(str(folder / "groups.jsonl"))
    assert {step: len(groups) for step, groups in steps.items()} == {1: 5, 2: 5, 3: 5}
    made = [group for groups in steps.values() for group in groups]
    assert [group.prompt.draw for group in made] == list(range(15)), "the stream's prompts in order"
    assert len({group.prompt.uid for group in made}) == 15
    assert {len(group.samples) for group in made} == {4}
    assert {(step, s.version) for step, groups in steps.items() for g in groups for s in g.samples} == {
        (1, 0), (2, 1), (3, 2),
    }  # fmt: skip
    assert [row["engine/restarts"] for row in rows] == [0, 0, 1, 1]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["engine_restarts"] == 1
    for row in rows[1:]:
        assert row["engine/tokens"] > 0
        assert row["engine/logprob_gap_max"] < PARITY
    for row in read_lines(settings, "memory.jsonl")[1:]:
        assert row["memory/asleep_host_bytes"] > 0


def check_biases(engine: str, folder: Path, tensor: int) -> None:
    """Biases land in the engine's fused and whole tensors, and with yarn its log-probs are transformers'; on one rank
    the output layer is one of its own, though config.json says that it is tied."""
    # SGLang has none in the feed-forward: `validate` refuses such a model.
    model = make_biased_model(folder / "model", 0, mlp_bias=engine == "vllm", own_head=tensor == 1)
    made = make_engine(engine, model, folder, tensor=tensor)
    try:
        publish(made, model, 1, tensor=tensor)
        check_live_weights(made, model, tensor)
        assert largest_gap(model, made.generate(requests(8))) < PARITY
    finally:
        made.close()


def check_misread(engine: str, folder: Path, **rollout: object) -> None:
    """A trainer that takes another rotary base than the engine takes no step."""
    model, prompts = toy.make_model(folder / "model", hidden=128), toy.make_prompts(folder / "prompts.jsonl")
    sampling = {"max_response_tokens": 30}
    chosen = {"engine": engine, "start_timeout_s": 600.0, "sampling": sampling, **rollout}
    settings = toy.settings(model, prompts, folder / "run", parallel={"timeout_s": 900.0}, rollout=chosen)
    (said,) = run_ranks(misread_rank, 1, json.dumps(settings), timeout_s=900.0)
    assert "engine and trainer log-probs differ by" in said and "\n" not in said
    assert [row["step"] for row in read_lines(settings, "metrics.jsonl")] == [0]


def train_and_kill(settings: str, note: str) -> int:
    """`train_rank`; the engine of rank 0 is killed when the first response of the second step is there: the longest
    take several times as long."""
    generate = ProcessEngine.generate

    def watched(
        self: ProcessEngine, asked: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        mine = self.pid is not None and os.environ["RANK"] == "0" and asked[0].key.step == 2

        def heard(completion: Completion) -> None:
            if mine and not Path(note).exists():
                Path(note).write_text("step 2")
                assert self.pid is not None
                kill_one(self.pid)
            assert on_finished is not None
            on_finished(completion)

        made = generate(self, asked, None if on_finished is None else heard)
        if mine and self.num_restarts == 1:
            Path(note).write_text("step 2, engine started again")
        return made

    ProcessEngine.generate = watched
    return train_rank(settings)
