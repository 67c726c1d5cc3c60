"""The unit on disk without models: manifest, damage, discovery, retention, config differences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_megatron.checkpoint.discovery import find
from prime_megatron.checkpoint.fingerprint import check_same_run, differences
from prime_megatron.checkpoint.layout import leftovers, step_folder, step_of, temporary_folder
from prime_megatron.checkpoint.manifest import content_damage, damage, file_sha256, publish, write_manifest
from prime_megatron.checkpoint.retention import kept_steps, prune
from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError


def save(root: Path, step: int) -> Path:
    """A checkpoint of three files, one of them hashed beforehand."""
    temporary = temporary_folder(root, step)
    (temporary / "policy").mkdir(parents=True)
    (temporary / "state.json").write_text(json.dumps({"step": step}))
    (temporary / "policy" / "a.distcp").write_bytes(bytes(range(256)))
    (temporary / "policy" / ".metadata").write_bytes(b"metadata")
    write_manifest(temporary, {"policy/a.distcp": file_sha256(temporary / "policy" / "a.distcp")})
    final = step_folder(root, step)
    publish(temporary, final)
    return final


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-00000012" and step_of(path) == 12
    assert damage(path) is None
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) == {"state.json", "policy/a.distcp", "policy/.metadata"}
    assert files["policy/a.distcp"]["bytes"] == 256
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "policy/a.distcp", "policy/.metadata"])
@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
def test_every_harm_to_every_file_is_found(name: str, harm: str, tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    file = path / name
    content = file.read_bytes()
    match harm:
        case "flip":
            file.write_bytes(bytes([content[0] ^ 128]) + content[1:])
        case "cut":
            file.write_bytes(content[:-1])
        case "grow":
            file.write_bytes(content + b"x")
        case "remove":
            file.unlink()
    assert name in (damage(path) or "")


def test_manifest_and_marker_guard_each_other(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = path / "manifest.json"
    original = manifest.read_text()
    manifest.write_text(original.replace('"bytes": 256', '"bytes": 255'))
    assert "another manifest.json" in (damage(path) or "")
    manifest.write_text(original)
    assert damage(path) is None
    (path / "COMPLETE").unlink()
    assert "never finished" in (damage(path) or "")
    assert damage(tmp_path / "step-00000099") == "is not a folder"


def test_ranks_share_the_hashing(tmp_path: Path) -> None:
    """Whatever the number of ranks, some rank finds the one changed file."""
    path = save(tmp_path, 1)
    (path / "policy" / ".metadata").write_bytes(b"metadatA")
    for ranks in (1, 2, 3, 7):
        found = [content_damage(path, rank, ranks) for rank in range(ranks)]
        assert [text for text in found if text] == ["has a changed policy/.metadata (its sha256 differs)"]


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for step in (5, 90, 1000):
        save(tmp_path, step)
    temporary_folder(tmp_path, 1001).mkdir()
    (step_folder(tmp_path, 1000) / "state.json").unlink()
    step_folder(tmp_path, 2000).symlink_to(tmp_path / "gone")
    (tmp_path / "step-latest").mkdir()
    found = find(tmp_path, "auto")
    assert found.path == step_folder(tmp_path, 90)
    assert [line.split()[0].rsplit("/", 1)[1] for line in found.passed_over] == [
        ".tmp-step-00001001", "step-00002000", "step-00001000"
    ]  # fmt: skip
    assert found.broken == (step_folder(tmp_path, 2000), step_folder(tmp_path, 1000))


def test_nothing_there_and_nothing_whole(tmp_path: Path) -> None:
    assert find(tmp_path / "none", "auto").path is None
    temporary_folder(tmp_path, 1).mkdir()
    assert find(tmp_path, "auto").path is None
    (save(tmp_path, 1) / "COMPLETE").unlink()
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        find(tmp_path, "auto")


def test_a_named_one_must_be_whole(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    save(tmp_path, 4)
    assert find(tmp_path, str(path)).path == path
    (path / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"--resume .*step-00000003: has state.json cut to 2 bytes"):
        find(tmp_path, str(path))


@given(st.sets(st.integers(1, 60)), st.integers(1, 4), st.integers(0, 9))
def test_kept_steps(steps: set[int], keep_last: int, keep_every: int) -> None:
    kept = kept_steps(steps, keep_last, keep_every)
    newest = sorted(steps, reverse=True)[:keep_last]
    assert kept == {step for step in steps if step in newest or (keep_every and step % keep_every == 0)}


def test_prune(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    temporary_folder(tmp_path, 8).mkdir()
    (step_folder(tmp_path, 6) / "COMPLETE").unlink()
    prune(tmp_path, keep_last=2, keep_every=3, broken=[step_folder(tmp_path, 7)])
    left = {step_of(path) for path in tmp_path.iterdir()}
    # 7 is broken and 6 unfinished: neither counts nor goes; 5 and 4 are the newest, 3 is a milestone.
    assert left == {7, 6, 5, 4, 3}


def config(**sections: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "run": {"output_dir": "out", "steps": 10},
        "models": {"policy": {"path": "m"}},
        "data": {"train": ["a.jsonl"]},
    }
    for name, section in sections.items():
        base[name] = base.get(name, {}) | section
    return TrainConfig.model_validate_json(json.dumps(base))


def saved(**sections: Any) -> dict[str, Any]:
    """The same as a checkpoint holds it."""
    return config(**sections).model_dump(mode="json")


@pytest.mark.parametrize(
    "change",
    [
        {"parallel": {"tensor": 2, "pipeline": 4}}, {"packing": {"max_tokens": 5}}, {"log": {"samples_every": 0}},
        {"rollout": {"engine": "embedded", "max_concurrent": 3, "vllm": {"memory_fraction": 0.3}}},
        {"rollout": {"start_timeout_s": 1e4, "alive_timeout_s": 1e3, "generate_timeout_s": 9.0, "transport": "disk"}},
        {"launch": {"nodes": 4}}, {"checkpoint": {"every": 7}}, {"verify": {"timeout_s": 1.0, "workers": 9}},
        {"run": {"steps": 20, "output_dir": "out", "name": "n"}}, {"eval": {"every": 3}},
    ],
)  # fmt: skip
def test_what_may_differ(change: dict[str, Any]) -> None:
    check_same_run(saved(), config(**change))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"prm": {"beta": 0.1}}, "prm.beta: 0.05 -> 0.1"),
        ({"run": {"seed": 3, "output_dir": "out", "steps": 10}}, "run.seed: 0 -> 3"),
        ({"rollout": {"samples_per_prompt": 8}}, "rollout.samples_per_prompt: 4 -> 8"),
        ({"models": {"policy": {"path": "other"}}}, "models.policy.path: 'm' -> 'other'"),
        ({"data": {"train": ["b.jsonl"]}}, "data.train: ['a.jsonl'] -> ['b.jsonl']"),
        ({"parallel": {"distributed_optimizer": False}}, "parallel.distributed_optimizer: True -> False"),
    ],
)
def test_what_may_not_differ(change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as refused:
        check_same_run(saved(), config(**change))
    assert refused.value.args[0].splitlines()[1:] == [f"  {line}"]


def test_steps_are_fixed_under_a_decaying_schedule() -> None:
    cosine = {"policy": {"path": "m", "optimizer": {"schedule": "cosine"}}}
    with pytest.raises(InputError, match=r"run\.steps: 10 -> 20 \(the learning rate of policy decays"):
        check_same_run(saved(models=cosine), config(models=cosine, run={"steps": 20, "output_dir": "out"}))
    part = {"policy": {"path": "m", "optimizer": {"warmup_ratio": 0.1}}}
    with pytest.raises(InputError, match=r"run\.steps: 10 -> 20 \(the learning rate of policy warms up for a part"):
        check_same_run(saved(models=part), config(models=part, run={"steps": 20, "output_dir": "out"}))


def test_a_checkpoint_older_than_a_key_goes_on_while_the_key_is_at_its_default() -> None:
    old = saved()
    del old["prm"]["beta"], old["advantage"], old["models"]["prm"]["optimizer"]["lr"]
    check_same_run(old, config())
    with pytest.raises(InputError, match=r"prm\.beta: 0\.05 -> 0\.1$"):
        check_same_run(old, config(prm={"beta": 0.1}))
    with pytest.raises(InputError, match=r"advantage\.estimator: 'rloo' -> 'grpo'$"):
        check_same_run(old, config(advantage={"estimator": "grpo"}))
    faster = {"policy": {"path": "m"}, "prm": {"optimizer": {"lr": 2e-6, "clip_grad": 10.0}}}
    with pytest.raises(InputError, match=r"models\.prm\.optimizer\.lr: 1e-06 -> 2e-06$"):  # the PRM's own default
        check_same_run(old, config(models=faster))


def test_a_saved_key_that_is_gone_is_not_compared() -> None:
    old = saved()
    old["log"]["prm_after_every"] = 10
    old["prm"]["gone"] = {"far": 1}
    old["gone"] = {"key": "value"}
    check_same_run(old, config())


def test_differences_name_keys() -> None:
    before, after = saved(), saved(prm={"beta": 0.1}, rollout={"sampling": {"top_p": 0.5}})
    found = [(key.name, old, new) for key, old, new in differences(TrainConfig, before, after)]
    assert found == [("rollout.sampling.top_p", 1.0, 0.5), ("prm.beta", 0.05, 0.1)]


def test_a_copy_elsewhere_is_as_good(tmp_path: Path) -> None:
    path = save(tmp_path / "one", 1)
    shutil.copytree(path, tmp_path / "two" / path.name)
    assert damage(tmp_path / "two" / path.name) is None
