"""Model cards say what is known and no more; a PRM's note is checked against the reference that lies there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prime_megatron.config import PrmConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.model_card import CARD_FILE, SOURCE_CARD, Card, card_text, licence_of, write_card
from prime_megatron.run.prm_note import NOTE_FILE, check_reference, note_of, read_note, reference_warning
from tests.support.toy import make_model, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("card") / "model", layers=1, hidden=32)


def card(source: str, **more: object) -> Card:
    values = {"name": "run", "verb": "train", "source": source, "step": 7, "config": "a: 1\n", "figures": {}}
    return Card(**values | more)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# M\n", ["license: apache-2.0"]),
        ("---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n",
         ["license: other", "license_name: qwen", "license_link: LICENSE"]),
        ("# no front matter\nlicense: mit\n", []),
        ("---\ntags: []\n---\nlicense: mit\n", []),
        ("---\nlicense: unknown\n---\n", []),
        (None, []),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_source_states(tmp_path: Path, text: str | None, lines: list[str]) -> None:
    if text is not None:
        (tmp_path / CARD_FILE).write_text(text)
    assert licence_of(tmp_path) == lines
    front = yaml.safe_load(card_text(card(str(tmp_path))).split("---")[1])
    assert front["license"] == (lines[0].removeprefix("license: ") if lines else "unknown")


def test_a_card_names_what_trained_it_and_figures_only_where_there_are_some(tmp_path: Path) -> None:
    bare = card_text(card("base"))
    assert "`prime-megatron train`), 7 steps from `base`" in bare and "```yaml\na: 1\n```" in bare
    assert "## Evaluation" not in bare and "ask its authors" in bare
    told = card_text(card("base", figures={"eval/accuracy": 0.9961}))
    assert "| eval/accuracy | 0.9961 |" in told and "At step 7" in told


def test_the_source_card_is_kept_and_a_stale_note_is_not(tmp_path: Path, model: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / CARD_FILE).write_text("---\nlicense: mit\n---\nTheirs.\n")
    target.mkdir()
    (target / NOTE_FILE).write_text("{}")  # came with the source's files
    write_card(target, card(str(source)))
    assert (target / SOURCE_CARD).read_text().endswith("Theirs.\n") and not (target / NOTE_FILE).exists()
    write_card(target, card(str(source), note=note_of(model, beta=0.05, loss="ce")))
    note = read_note(str(target))
    assert note is not None and (note.beta, note.loss) == (0.05, "ce")
    assert Path(note.reference) == Path(model).resolve() and "beta = 0.05" in (target / CARD_FILE).read_text()


def test_another_reference_than_the_prm_learned_against_is_refused(tmp_path: Path, model: str) -> None:
    other = make_model(tmp_path / "other", layers=1, hidden=32, seed=5)
    note = note_of(model, beta=0.05, loss="ce")
    check_reference("prm", note)
    (tmp_path / NOTE_FILE).write_text(json.dumps(vars(note) | {"reference": other}))
    found = read_note(str(tmp_path))
    assert found is not None
    with pytest.raises(InputError, match=r"is not what it was \(weights\)"):
        check_reference("prm", found)
    (tmp_path / NOTE_FILE).write_text("[]")
    with pytest.raises(InputError, match=r"prm\.json: not what an export writes"):
        read_note(str(tmp_path))


def test_a_run_is_told_when_its_prm_scores_against_another_reference(tmp_path: Path, model: str) -> None:
    prm = make_model(tmp_path / "prm", layers=1, hidden=32, seed=1)
    write_card(Path(prm), card(model, note=note_of(model, beta=0.05, loss="ce")))

    def warning(**models: object) -> str | None:
        config = settings(model, "p.jsonl", tmp_path / "out", models=models)
        return reference_warning(TrainConfig.model_validate_json(json.dumps(config)))

    assert "rewards, which start at 0; set models.reference" in (warning(prm={"path": prm}) or "")
    assert warning(prm={"path": prm}, reference=model) is None
    assert "is not what" in (warning(prm={"path": prm}, reference=prm) or "")
    assert warning(prm={"path": model}) is None and warning() is None


def test_a_prm_config_needs_its_section(tmp_path: Path) -> None:
    from prime_megatron.config.load import load_prm_config, load_stage_config

    path = tmp_path / "run.yaml"
    text = "run: {output_dir: o, steps: 1}\nmodel: m\ndata: {train: [a.jsonl]}\n"
    path.write_text(text)
    with pytest.raises(InputError, match="the section prm is missing"):
        load_prm_config(str(path), [])
    assert not isinstance(load_stage_config(str(path), []), PrmConfig)
    path.write_text(text + "prm: {}\n")
    assert isinstance(load_stage_config(str(path), []), PrmConfig)
