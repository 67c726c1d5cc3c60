"""SGLang in a process of its own: generation, every way of the weights at TP1 and TP2, sleep, death and hang.

A start takes most of half a minute, so what kills an engine is tested once each: a hang, the server, and kill -9 amid
the rollout of a training run at TP1 and at TP2.
"""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from prime_megatron.errors import InputError
from prime_megatron.rollout.process.engine import ProcessEngine
from tests.engines import cases
from tests.engines.tiny import make_engine, make_windowed_model, publish, requests, switch

pytestmark = pytest.mark.sglang
ENGINE = "sglang"
ALIVE_TIMEOUT_S = 10.0
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
    engine = make_engine(ENGINE, models[0], folder, tensor=2, alive_timeout_s=120.0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEngine]:
    folder = tmp_path_factory.mktemp("server")
    engine = make_engine(ENGINE, models[0], folder, server=True, alive_timeout_s=120.0)
    yield engine
    engine.close()


def test_live_weights_at_tp1(single: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_generation(single, *models, tensor=1)
    cases.check_live_weights(single, models[1], tensor=1)


def test_sleep_and_wake_in_order(single: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_sleep(single, *models, tensor=1)


def test_a_response_of_another_version_is_refused(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[0], 40)
    cases.check_version(single)


def test_a_hang_is_noticed_and_the_engine_replaced(single: ProcessEngine, models: tuple[str, str]) -> None:
    publish(single, models[0], 60)
    cases.check_death(single, models[0], hit=cases.stop_one, patience_s=ALIVE_TIMEOUT_S + NOTICED_S)
    cases.check_live_weights(single, models[0], tensor=1)
    assert single.num_restarts == 1


@pytest.mark.parametrize("transport", ["bucket", "broadcast", "disk"])
def test_sent_weights_at_tp1(single: ProcessEngine, models: tuple[str, str], tmp_path: Path, transport: str) -> None:
    switch(single, transport, models[0], tmp_path, 1)
    cases.check_generation(single, *models, tensor=1)


def test_wrong_tensors_are_named(single: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(single, "bucket", models[0], tmp_path, 1)
    cases.check_wrong_names(single, models[0])


def test_a_refused_update_stops_the_run(single: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(single, "disk", models[0], tmp_path, 1)
    cases.check_refusal(single, models[0])


def test_the_last_death_stops_the_run(single: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(single, "bucket", models[0], tmp_path, 1)
    publish(single, models[0], 90)
    cases.check_end(single)


def test_live_weights_at_tp2(pair: ProcessEngine, models: tuple[str, str]) -> None:
    cases.check_generation(pair, *models, tensor=2)
    cases.check_live_weights(pair, models[1], tensor=2)


@pytest.mark.parametrize("transport", ["bucket", "broadcast", "disk"])
def test_sent_weights_at_tp2(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path, transport: str) -> None:
    switch(pair, transport, models[0], tmp_path, 2)
    cases.check_generation(pair, *models, tensor=2)


def test_wrong_and_refused_tensors_at_tp2(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(pair, "bucket", models[0], tmp_path, 2)
    cases.check_wrong_names(pair, models[0])
    switch(pair, "disk", models[0], tmp_path, 2)
    cases.check_refusal(pair, models[0])


def test_sleep_and_versions_at_tp2(pair: ProcessEngine, models: tuple[str, str], tmp_path: Path) -> None:
    switch(pair, "broadcast", models[0], tmp_path, 2)
    cases.check_sleep(pair, *models, tensor=2)
    cases.check_version(pair)


@pytest.mark.parametrize("transport", ["live", "bucket", "broadcast", "disk"])
def test_the_server_takes_weights_and_generates(
    server: ProcessEngine, models: tuple[str, str], tmp_path: Path, transport: str
) -> None:
    if transport != "live":  # as it was started
        switch(server, transport, models[0], tmp_path, 1)
    cases.check_generation(server, *models, tensor=1)


def test_the_server_sleeps_refuses_and_tells_its_version(
    server: ProcessEngine, models: tuple[str, str], tmp_path: Path
) -> None:
    switch(server, "disk", models[0], tmp_path, 1)
    cases.check_sleep(server, *models, tensor=1)
    cases.check_version(server)
    cases.check_refusal(server, models[0])


def test_the_server_answers_on_loopback_to_the_key_alone(server: ProcessEngine) -> None:
    """The key stands in no process list; without it nothing but the questions whether it lives is answered."""
    assert server.pid is not None
    process = next(p for p in psutil.Process(server.pid).children() if "sglang.server" in " ".join(p.cmdline()))
    assert process.cmdline()[1:] == ["-m", "prime_megatron.rollout.sglang.server"]
    listening = [c.laddr for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    (port,) = {address.port for address in listening if answers(address.port, "ready", None) == 200}
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
    for route in ("generate", "begin_weight_update", "update_weights_from_tensor", "release_memory_occupation"):
        for key in (None, "wrong"):
            assert answers(port, route, key) == 401, route
    assert len(server.generate(requests(2))) == 2


def answers(port: int, route: str, key: str | None) -> int:
    """The status of a request; 0 where nobody speaks HTTP."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = None if route == "ready" else b"{}"
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/{route}", body, headers), timeout=5.0) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except (URLError, OSError, HTTPException):
        return 0


def test_the_server_is_replaced_when_it_is_killed(
    server: ProcessEngine, models: tuple[str, str], tmp_path: Path
) -> None:
    switch(server, "bucket", models[0], tmp_path, 1)
    publish(server, models[1], 100)
    cases.check_death(server, models[1], hit=cases.kill_one, patience_s=NOTICED_S)


def test_training_over_pipeline_stages_with_an_engine_over_both_ranks_that_is_killed(tmp_path: Path) -> None:
    cases.check_training(ENGINE, tmp_path, "pipeline", tensor=2)


def test_training_over_tensor_ranks_with_an_engine_each_one_killed_and_sent_weights(tmp_path: Path) -> None:
    cases.check_training(ENGINE, tmp_path, "tensor", transport="bucket")


def test_a_model_that_the_trainer_reads_otherwise_takes_no_step(tmp_path: Path) -> None:
    cases.check_misread(ENGINE, tmp_path)


@pytest.mark.parametrize("tensor", [1, 2])
def test_biases_and_yarn(tmp_path: Path, tensor: int) -> None:
    cases.check_biases(ENGINE, tmp_path, tensor)


def test_a_window_that_it_lacks_ends_the_start(tmp_path: Path) -> None:
    model = make_windowed_model(tmp_path / "model", 8)
    with pytest.raises(InputError) as caught:
        make_engine(ENGINE, model, tmp_path)
    windows = "windows by layer is [8, 8] for the trainer, [None, None] for SGLang; they would compute two models"
    assert str(caught.value) == f"{model}/config.json: {windows}"
