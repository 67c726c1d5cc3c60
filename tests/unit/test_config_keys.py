"""What a resumed run may change: said at the field, true of every key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field

from prime_megatron.config import TrainConfig
from prime_megatron.config.base import Fixed, Free, OnResume, Section
from prime_megatron.config.keys import Key, keys_of


class Inner(Section):
    """A section."""

    plain: int = 1
    kept: Fixed[int] = 2


class Outer(Section):
    """A config."""

    needed: int
    own: Free[int] = 3
    inner: Inner = Inner()
    freed: Free[Inner] = Inner(plain=7)
    listed: Free[dict[str, int]] = Field(default={})


def test_the_nearest_mark_holds_and_sections_preset_their_keys() -> None:
    free, fixed = OnResume.free, OnResume.fixed
    assert list(keys_of(Outer)) == [
        Key("needed", None, fixed),
        Key("own", 3, free),
        Key("inner.plain", 1, fixed),
        Key("inner.kept", 2, fixed),
        Key("freed.plain", 7, free),
        Key("freed.kept", 2, fixed),
        Key("listed", {}, free),
    ]


def leaves(values: Any, defaults: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name and value of all that is no section; a dict that is a value of its own is in ``defaults``."""
    if isinstance(values, dict) and prefix not in defaults:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= leaves(value, defaults, f"{prefix}.{name}" if prefix else name)
        return found
    return {prefix: values}


def test_every_key_of_a_dumped_config_is_known_with_its_default() -> None:
    text = json.dumps({"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {}}, "data": {"train": ["t"]}})
    dumped = TrainConfig.model_validate_json(text).model_dump(mode="json")
    defaults = {key.name: key.default for key in keys_of(TrainConfig)}
    expected = defaults | {"run.output_dir": "o", "run.steps": 1, "data.train": ["t"]}
    assert leaves(dumped, defaults) == expected


@pytest.mark.parametrize(
    ("name", "on_resume"),
    [
        ("run.steps", "free"),  # fixed where a schedule decays: checkpoint/fingerprint.py
        ("run.seed", "fixed"),
        ("rollout.start_timeout_s", "free"),
        ("rollout.alive_timeout_s", "free"),
        ("rollout.transport", "free"),
        ("rollout.engine", "free"),
        ("rollout.replay", "fixed"),
        ("rollout.oversample", "fixed"),  # it decides which prompts a step draws
        ("rollout.filter.max_rounds", "free"),
        ("rollout.filter.max_age", "fixed"),
        ("data.eval", "free"),
        ("data.train", "fixed"),
        ("models.dtype", "fixed"),
        ("rollout.dtype", "free"),
        ("models.logprob_impl", "free"),
        ("models.layers", "free"),
        ("verify.timeout_s", "free"),
        ("parallel.tensor", "free"),
        ("parallel.distributed_optimizer", "fixed"),
    ],
)
def test_keys_that_might_surprise(name: str, on_resume: str) -> None:
    assert {key.name: key.on_resume.value for key in keys_of(TrainConfig)}[name] == on_resume


def test_every_limit_of_time_may_change() -> None:
    limits = [key for key in keys_of(TrainConfig) if key.name.endswith("_s")]
    assert len(limits) >= 7
    assert {key.on_resume for key in limits} == {OnResume.free}
