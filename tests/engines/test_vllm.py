"""vLLM in a process of its own: generation, every way of the weights at TP1 and TP2, sleep, death and hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prime_megatron.errors import InputError
from prime_megatron.rollout.process.engine import ProcessEngine
from tests.engines import cases
from tests.engines.tiny import make_engine, make_windowed_model, publish, requests, switch

pytestmark = pytest.mark.vllm
ENGINE = "vllm"
ALIVE_TIMEOUT_S = 20.0
NOTICED_S = 10.0
"""A death is seen within a second on an idle machine."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return cases.two_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def single(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEngine]:
    folder = tmp_path_factory.mktemp("single")
    engine = make_engine(ENGINE, models[0], folder, alive_timeout_s=ALIVE_TIMEOUT_S)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pair(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEngine]:
    folder = tmp_path_factory.mktemp("pair")
    engine = make_engine(ENGINE, models[0], folder, tensor=2, alive_timeout_s=ALIVE_TIMEOUT_S)
    yield engine
    engine.close()


def test_live_weights_at_tp1(single: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_generation(single, *models, tensor=1)
    cases.check_live_weights(single, models[1], tensor=1)


def test_a_response_depends_on_its_own_seed_alone(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[0], 30)
    together = single.generate(requests(6))
    alone = [single.generate([request])[0] for request in requests(6)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_sleep_and_wake_in_order_at_tp1(single: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_sleep(single, *models, tensor=1)


def test_a_response_of_another_version_is_refused_at_tp1(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[0], 40)
    cases.check_version(single)


def test_kill_9_in_mid_rollout_loses_and_doubles_nothing(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[1], 50)
    cases.check_death(single, models[1], hit=cases.kill_one, patience_s=NOTICED_S)
    cases.check_live_weights(single, models[1], tensor=1)


def test_a_hang_is_noticed_and_the_engine_replaced(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[0], 60)
    cases.check_death(single, models[0], hit=cases.stop_one, patience_s=ALIVE_TIMEOUT_S + NOTICED_S)


@pytest.mark.parametrize("transport", ["bucket", "broadcast", "disk"])
def test_sent_weights_at_tp1(single: ProcessEngine, models: tuple[str, str], tmp_path: Path, transport: str) -> None:
    switch(single, transport, models[0], tmp_path, 1)
    cases.check_generation(single, *models, tensor=1)


def test_a_death_in_mid_update(single: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(single, "broadcast", models[0], tmp_path, 1)
    publish(single, models[0], 65)
    cases.check_death_in_mid_update(single, models[1], 66)


def test_wrong_tensors_are_named_at_tp1(single: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(single, "bucket", models[0], tmp_path, 1)
    cases.check_wrong_names(single, models[0])


def test_the_last_death_stops_the_run(single: ProcessEngine) -> None:
    cases.check_end(single)


def test_live_weights_at_tp2(pair: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_generation(pair, *models, tensor=2)
    cases.check_live_weights(pair, models[1], tensor=2)


def test_sleep_and_wake_in_order_at_tp2(pair: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_sleep(pair, *models, tensor=2)


def test_a_response_of_another_version_is_refused_at_tp2(pair: ProcessEngine, models: tuple[str, str]) -> None:
    publish(pair, models[0], 40, tensor=2)
    cases.check_version(pair)


def test_a_hang_of_one_tp_rank_is_noticed(pair: ProcessEngine, models: tuple[str, str]) -> None:
    publish(pair, models[1], 50, tensor=2)
    cases.check_death(pair, models[1], hit=cases.stop_one, patience_s=ALIVE_TIMEOUT_S + NOTICED_S, tensor=2)
    cases.check_live_weights(pair, models[1], tensor=2)


@pytest.mark.parametrize("transport", ["bucket", "broadcast", "disk"])
def test_sent_weights_at_tp2(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path, transport: str) -> None:
    switch(pair, transport, models[0], tmp_path, 2)
    cases.check_generation(pair, *models, tensor=2)


def test_wrong_tensors_are_named_at_tp2(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(pair, "bucket", models[0], tmp_path, 2)
    cases.check_wrong_names(pair, models[0])


def test_kill_9_of_one_tp_rank_with_sent_weights(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(pair, "bucket", models[0], tmp_path, 2)
    publish(pair, models[1], 70, tensor=2)
    cases.check_death(pair, models[1], hit=cases.kill_one, patience_s=NOTICED_S, tensor=2)


def test_training_over_pipeline_stages_with_an_engine_over_both_ranks(tmp_path: Path) -> None:
    cases.check_training(ENGINE, tmp_path, "pipeline", tensor=2)


def test_training_over_tensor_ranks_with_an_engine_each_and_a_folder(tmp_path: Path) -> None:
    cases.check_training(ENGINE, tmp_path, "tensor", transport="disk")


def test_a_model_that_the_trainer_reads_otherwise_takes_no_step(tmp_path: Path) -> None:
    cases.check_misread(ENGINE, tmp_path)


@pytest.mark.parametrize("tensor", [1, 2])
def test_biases_and_yarn(tmp_path: Path, tensor: int) -> None:
    cases.check_biases(ENGINE, tmp_path, tensor)


def test_windows_are_those_of_transformers(tmp_path: Path) -> None:
    model = make_windowed_model(tmp_path / "model", 8)
    engine = make_engine(ENGINE, model, tmp_path)
    publish(engine, model, 1)
    assert cases.largest_gap(model, engine.generate(requests(6, max_tokens=24))) < cases.PARITY
    engine.close()


def test_another_reading_ends_the_start(tmp_path: Path, models: tuple[str, str]) -> None:
    changed = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    with pytest.raises(InputError) as caught:
        make_engine(ENGINE, models[0], tmp_path, extra={"hf_overrides": changed})
    theta = "rope_theta is 10000.0 for the trainer, 500.0 for vLLM; they would compute two models"
    assert str(caught.value) == f"{models[0]}/config.json: {theta}"
