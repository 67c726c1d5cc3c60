"""An engine in its own process, with a driver that needs no engine: answers, deaths, hangs, weights, errors."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from prime_megatron.errors import InputError, RunError
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.rollout.engine import Completion, Engine, Request, Sampling, WeightsLost
from prime_megatron.rollout.process.driver import DriverSettings, request_from_json, request_to_json, stream_seed
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.process import EngineProcess, child_environment
from prime_megatron.rollout.process.replica import Member
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.types import Bucket
from prime_megatron.weights.folder import WeightFolder
from prime_megatron.weights.transports import (
    BroadcastTransport,
    BucketTransport,
    DiskTransport,
    LiveTransport,
    Transport,
)
from tests.support.echo_driver import DIE, FAIL, HANG

WEIGHT = torch.arange(6.0).view(2, 3)
PIECE = ShardSlice("weight", 0, ((0, 2), (0, 3)), "weight", ((0, 2), (0, 3)), (2, 3))
Make = Callable[..., ProcessEngine]
ECHO = "tests.support.echo_driver.EchoDriver"


def start(
    folder: Path,
    transport: Transport,
    extra: dict[str, bool],
    max_restarts: int = 1,
    alive_timeout_s: float = 60.0,
    driver: str = ECHO,
) -> ProcessEngine:
    flags = {"broken": False, "dead": False, "once": str(folder / "once")} | extra
    settings = DriverSettings(
        model_path=str(folder), device="cpu", dtype="float32", tensor=1, max_tokens=20, max_concurrent=8,
        end_token_ids=(1,), seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1,
        can_sleep=True, start_timeout_s=240.0, extra=flags,
    )  # fmt: skip
    return ProcessEngine(
        Member(0, 1, 0, 0, None),
        settings,
        Limits(max_restarts, 240.0, alive_timeout_s, 120.0),
        lambda: EngineProcess(driver, settings, {}, folder / "engine.log"),
        transport,
    )


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[ProcessEngine] = []

    def engine(
        transport: Transport, *, max_restarts: int = 1, alive_timeout_s: float = 60.0, driver: str = ECHO, **extra: bool
    ) -> ProcessEngine:
        made.append(start(tmp_path, transport, extra, max_restarts, alive_timeout_s, driver))
        return made[-1]

    yield engine
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEngine]:
    """One for all tests in which nothing breaks."""
    folder = tmp_path_factory.mktemp("quiet")
    engine = start(folder, live(), {})
    yield engine
    engine.close()


def live() -> LiveTransport:
    return LiveTransport(1, 60.0)


def bucket(kind: type[BucketTransport] = BucketTransport) -> BucketTransport:
    return kind([[PIECE]], torch.float32, 1, 60.0)


def disk(folder: Path) -> DiskTransport:
    return DiskTransport([[PIECE]], torch.float32, 1, 60.0, WeightFolder(folder / "spool", None))


def a_bucket(weight: torch.Tensor, version: int, name: str = "weight") -> Iterator[Bucket]:
    yield Bucket([name], [weight], version)


def requests(*first: int) -> list[Request]:
    return [Request((word, 5, place), SampleKey(0, 1, place, 0), Sampling(4)) for place, word in enumerate(first)]


def publish(engine: ProcessEngine, weight: torch.Tensor, version: int) -> None:
    targets = engine.named_targets()
    assert targets is not None
    targets["weight"].copy_(weight)
    engine.update_weights((), version)


def test_it_answers_in_order_and_tells_each_at_once_with_the_written_weights(quiet: ProcessEngine) -> None:
    assert isinstance(quiet, Engine)
    heard: list[Completion] = []
    for version, weight in enumerate((WEIGHT, WEIGHT + 1)):
        publish(quiet, weight, version)
        made = quiet.generate(requests(2, 3, 4), heard.append)
        assert quiet.version == version
        assert [c.token_ids for c in made] == [(2, 5, 0), (3, 5, 1), (4, 5, 2)]
        assert {lp for c in made for lp in c.logprobs} == {float(weight.sum())}
    assert [c.request.key.draw for c in heard] == [2, 1, 0, 2, 1, 0]
    assert quiet.generate([]) == []


@pytest.mark.parametrize("what", [DIE, FAIL], ids=["killed", "failed"])
def test_a_death_in_mid_call_loses_nothing_and_keeps_the_weights(make: Make, what: int) -> None:
    engine = make(live())
    publish(engine, WEIGHT, 3)
    heard: list[Completion] = []
    asked = requests(2, what, 4, 6)
    made = engine.generate(asked, heard.append)
    assert [c.request for c in made] == asked
    assert Counter(c.request.key for c in heard) == Counter(r.key for r in asked)
    assert {lp for c in made for lp in c.logprobs} == {float(WEIGHT.sum())}
    assert engine.num_restarts == 1
    assert engine.version == 3


def test_a_hang_is_a_death(make: Make) -> None:
    engine = make(live(), alive_timeout_s=4.0, max_restarts=3)
    publish(engine, WEIGHT, 0)
    started = time.monotonic()
    assert len(engine.generate(requests(2, HANG))) == 2
    assert engine.num_restarts >= 1
    assert time.monotonic() - started < 240.0  # and not the ten minutes for which it hangs


def test_too_many_deaths_stop_the_run(make: Make, tmp_path: Path) -> None:
    engine = make(live(), max_restarts=0)
    publish(engine, WEIGHT, 0)
    with pytest.raises(RunError, match=r"engine 0: the process ended .*max_restarts"):
        engine.generate(requests(DIE))


def test_an_engine_that_does_not_start_stops_the_run(make: Make) -> None:
    with pytest.raises(RunError, match="started 2 times in a row"):
        make(live(), dead=True)


def test_weights_in_a_folder_survive_a_death(make: Make, tmp_path: Path) -> None:
    engine = make(disk(tmp_path))
    engine.update_weights(a_bucket(WEIGHT, 5), 5)
    made = engine.generate(requests(2, DIE))
    assert {lp for c in made for lp in c.logprobs} == {float(WEIGHT.sum())}
    assert engine.num_restarts == 1
    engine.update_weights(a_bucket(WEIGHT * 2, 6), 6)
    assert engine.generate(requests(2))[0].logprobs[0] == float(2 * WEIGHT.sum())


@pytest.mark.parametrize("kind", [BucketTransport, BroadcastTransport])
def test_weights_that_a_death_took_are_asked_for_and_the_call_goes_on(make: Make, kind: type[BucketTransport]) -> None:
    engine = make(bucket(kind))
    assert engine.named_targets() is None
    engine.update_weights(a_bucket(WEIGHT, 5), 5)
    heard: list[Completion] = []
    asked = requests(2, DIE, 4, 6)
    with pytest.raises(WeightsLost):
        engine.generate(asked, heard.append)
    assert engine.version == -1
    assert [c.request.key.draw for c in heard] == [3, 2]
    with pytest.raises(AssertionError):
        engine.generate(asked)
    engine.sleep(1)  # what the colocated order does before it publishes
    engine.wake({"weights"})
    engine.update_weights(a_bucket(WEIGHT, 5), 5)
    engine.wake({"kv_cache"})
    made = engine.generate(asked, heard.append)
    assert [c.request for c in made] == asked
    assert [c.request.key.draw for c in heard] == [3, 2, 1, 0]
    assert {lp for c in made for lp in c.logprobs} == {float(WEIGHT.sum())}
    assert engine.num_restarts == 1


def test_a_death_amid_an_update_asks_for_all_of_it_again(make: Make) -> None:
    engine = make(bucket())

    def killed(version: int) -> Iterator[Bucket]:
        assert engine.pid is not None
        os.killpg(engine.pid, signal.SIGKILL)
        yield from a_bucket(WEIGHT, version)

    engine.update_weights(killed(0), 0)
    assert engine.version == -1
    engine.update_weights(a_bucket(WEIGHT, 0), 0)
    assert engine.version == 0
    assert engine.generate(requests(2))[0].logprobs[0] == float(WEIGHT.sum())


def test_deaths_with_updates_between_them_stop_the_run_too(make: Make, tmp_path: Path) -> None:
    engine = make(bucket(), max_restarts=1)
    engine.update_weights(a_bucket(WEIGHT, 0), 0)
    with pytest.raises(WeightsLost):
        engine.generate(requests(2, DIE))
    (tmp_path / "once").unlink()
    engine.update_weights(a_bucket(WEIGHT, 0), 0)
    with pytest.raises(RunError, match="started 2 times in a row"):
        engine.generate(requests(2, DIE))


def test_a_death_asleep_is_found_when_it_wakes(make: Make) -> None:
    engine = make(live())
    publish(engine, WEIGHT, 0)
    engine.sleep(2)
    assert engine.pid is not None
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wake({"weights"})
    publish(engine, WEIGHT, 1)
    engine.wake({"kv_cache"})
    assert engine.generate(requests(2))[0].logprobs[0] == float(WEIGHT.sum())


def test_a_refused_update_stops_the_run(make: Make, tmp_path: Path) -> None:
    engine = make(disk(tmp_path))
    refuse = tmp_path / "spool" / "refuse"
    refuse.write_text("")
    with pytest.raises(RunError, match="weight sync: the echo refused it"):
        engine.update_weights(a_bucket(WEIGHT, 0), 0)
    assert engine.version == -1
    assert engine.num_restarts == 0
    refuse.unlink()
    engine.update_weights(a_bucket(WEIGHT, 1), 1)
    assert engine.version == 1


def test_a_buffer_is_written_again_only_when_it_has_been_read(make: Make, tmp_path: Path) -> None:
    engine = make(bucket())
    weight = WEIGHT.clone()

    def growing() -> Iterator[Bucket]:
        for scale in range(5):
            weight.copy_(WEIGHT * scale)  # a bucket's own memory is free when the next one is asked for
            yield Bucket(["weight"], [weight], 0)

    engine._link._manifest._check_every = 0  # the same tensor several times
    engine.update_weights(growing(), 0)
    assert engine.generate(requests(2))[0].logprobs[0] == float(4 * WEIGHT.sum())
    seen = [line for line in (tmp_path / "engine.log").read_text().splitlines() if line.startswith("bucket")]
    assert seen == [f"bucket of {15.0 * scale}" for scale in range(5)]


def test_unknown_and_missing_tensors_are_named(make: Make) -> None:
    engine = make(bucket())
    with pytest.raises(RunError, match="no tensor nope"):
        engine.update_weights(a_bucket(WEIGHT, 0, "nope"), 0)
    with pytest.raises(RunError, match=r"weight is \[3, 2\], the engine's model has \[2, 3\]"):
        engine.update_weights(a_bucket(WEIGHT.T, 0), 0)
    with pytest.raises(RunError, match="1 tensors are missing, such as weight"):
        engine.update_weights(iter(()), 0)
    assert engine.version == -1
    with pytest.raises(AssertionError):
        engine.generate(requests(2))


def test_weights_that_arrive_wrong_are_named(make: Make) -> None:
    engine = make(live(), broken=True)
    with pytest.raises(RunError, match=r"version 4: 1 tensors of engine rank 0 differ .* weight"):
        publish(engine, WEIGHT, 4)
    assert engine.version == -1
    engine._transport, engine._targets = bucket(), None
    with pytest.raises(RunError, match=r"version 5: 1 tensors of engine rank 0 differ .* weight"):
        engine.update_weights(a_bucket(WEIGHT, 5), 5)


def test_a_response_of_another_version_is_refused(quiet: ProcessEngine) -> None:
    publish(quiet, WEIGHT, 1)
    quiet._version = 2
    with pytest.raises(RunError, match="policy version 1, not 2"):
        quiet.generate(requests(2))


def test_asleep_it_does_not_answer_and_wakes_in_parts(quiet: ProcessEngine) -> None:
    publish(quiet, WEIGHT, 0)
    quiet.sleep(2)
    assert quiet.version == -1
    quiet.wake({"weights"})
    publish(quiet, WEIGHT, 1)
    with pytest.raises(AssertionError):
        quiet.generate(requests(2))
    quiet.wake({"kv_cache"})
    assert len(quiet.generate(requests(2))) == 1


def test_a_request_that_cannot_fit_is_bad_input(quiet: ProcessEngine) -> None:
    publish(quiet, WEIGHT, 0)
    with pytest.raises(InputError, match="may reach 21 tokens, the engine holds 20"):
        quiet.generate([Request((1,), SampleKey(0, 0, 0, 0), Sampling(20))])


def test_nothing_is_left_when_it_is_closed(make: Make) -> None:
    engine = make(live())
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_that_reads_another_model_is_bad_input_and_not_started_again(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make(live(), misread=True)
    assert str(caught.value) == f"{tmp_path}/config.json: x is 1 for the trainer, 2 for the engine"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_engine_is_one_line_with_what_to_do(make: Make) -> None:
    with pytest.raises(InputError, match=r"vllm cannot start: No module named 'vllm'; .*make_env.py vllm"):
        make(live(), driver="vllm")


def test_the_launcher_is_hidden_from_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    env = child_environment({"OMP_NUM_THREADS": "3"})
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "GROUP_RANK"} & env.keys()
    assert env["OMP_NUM_THREADS"] == "3"


def test_an_engine_does_not_inherit_how_the_trainer_drives_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that sleep end at start under expandable segments; one queue to the GPU is Megatron's need alone."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512,expandable_segments:True")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    env = child_environment({})
    assert env["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512" and env["PYTORCH_ALLOC_CONF"] == ""
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in env


def test_requests_cross_the_line_unchanged_and_seeds_differ() -> None:
    request = Request((3, 4), SampleKey(1, 2, 3, 4, 1), Sampling(7, 0.3, 0.9, greedy=True))
    assert request_from_json(request_to_json(request)) == request
    keys = [SampleKey(*(int(place == other) for other in range(5))) for place in range(5)]
    assert len({stream_seed(key) for key in keys}) == 5
    assert all(0 <= stream_seed(key) < 2**31 for key in keys)


def test_a_share_of_the_whole_device_as_one_of_what_is_free() -> None:
    """0.4 of a device of which 0.8 is free are half of that."""
    settings = DriverSettings(
        model_path="m", device="cuda", dtype="bfloat16", tensor=1, max_tokens=20, max_concurrent=8, end_token_ids=(1,),
        seed=0, trust_remote_code=False, memory_fraction=0.4, cpu_cache_bytes=1, can_sleep=True,
    )  # fmt: skip
    assert dataclasses.replace(settings, free_share=0.8).share_of_free() == pytest.approx(0.5)
    assert settings.now().free_share == 1.0, "a CPU's"
    with pytest.raises(InputError, match=r"^memory_fraction: 0.4 of the device's memory, and 0.30 of it is free"):
        dataclasses.replace(settings, free_share=0.3).share_of_free()
