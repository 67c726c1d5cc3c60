"""The small chain's parts: made rows are what they say, every planted row is found, configs fit together and plan."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.eurus2_cpu import answerer, make_sources, report
from examples.eurus2_cpu.shelf import read_shelf
from prime_megatron.cli.main import main
from prime_megatron.config.load import load_sft_config, load_train_config
from prime_megatron.data.actions import form_problem
from prime_megatron.data.rows import read_sft_rows
from prime_megatron.data.tokenizer import load_tokenizer
from tests.support.curating import Ran, read_rows
from tests.support.public_models import make_folder

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAIN = EXAMPLES / "eurus2_cpu"
CONFIG = ["--config", str(CHAIN / "curate.yaml")]
LATER = {"rl: wrong gold", "unsolvable: unsolvable"}
"""What only attempts can find."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        for name, count in {"NUM_RL": 80, "NUM_OPEN": 60, "NUM_PLANTED": 8}.items():
            patch.setattr(make_sources, name, count)
        make_sources.make(folder, seed=0, real=None)
    return folder


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = answerer.Server(("127.0.0.1", 0), answerer.Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def counted(text: str) -> int:
    """The answer, from the text alone."""
    start, lines = re.match(r"A \w+ holds (\d+) \w+: (.*)\. How many", text).groups()
    return int(start) + sum(int(n) * (1 if word == "come" else -1) for n, word in re.findall(r"(\d) (come|go)", lines))


def test_made_problems_are_what_they_say(raw: Path) -> None:
    held_out = read_rows(raw / "held_out.jsonl")
    assert len(held_out) == 256 and all(int(row["answer"]) == counted(row["question"]) for row in held_out)
    for row in read_rows(raw / "rl.jsonl")[:80]:
        assert row["solution"].endswith(f"\\boxed{{{counted(row['problem'])}}}.")
        assert read_shelf(row["problem"]).text == row["problem"]
    tokenizer = load_tokenizer(str(raw / "model"))
    prime = load_train_config(str(CHAIN / "prime.yaml"), [])
    for row in held_out[:40]:
        asked = row["question"] + make_sources.WORDING
        said = answerer.reply(asked, 1, first=False)
        assert tokenizer.decode(tokenizer.encode(said)) == said
        assert len(tokenizer.encode(asked)) < prime.data.max_prompt_tokens - 8
        assert len(tokenizer.encode(said)) < prime.rollout.sampling.max_response_tokens


def test_the_answerer_keeps_the_form_but_for_some_and_slips(raw: Path) -> None:
    texts = [row["question"] for row in read_rows(raw / "held_out.jsonl")]
    said = [answerer.reply(text, 0, first=False) for text in texts]
    assert said == [answerer.reply(text, 0, first=False) for text in texts]
    broken = sum(form_problem(text) is not None for text in said)
    right = sum(f"\\boxed{{{counted(text)}}}" in answer for text, answer in zip(texts, said, strict=True))
    assert 1 <= broken <= 30 and 0.3 < right / len(texts) < 0.8
    assert answerer.reply("What is 2+2?", 0, first=False) is None
    some = read_rows(raw / "unsolvable.jsonl")[0]["question"]
    assert {answerer.reply(some, seed, first=False).count("No solution") for seed in range(40)} == {0, 1}


def test_every_planted_row_is_found(raw: Path, url: str, tmp_path: Path) -> None:
    """The chain's stages up to the attempts, on fewer rows."""
    held = ["--suite", str(CHAIN / "suite.yaml"), "--data", str(raw)]
    model = ["--model", "rule", "--endpoint", url, "--workers", "1"]

    def stage(name: str, output: str, inputs: list[Path], *words: str) -> Path:
        ran = Ran(name, inputs, tmp_path / f"{output}.jsonl", *CONFIG, *words)
        assert ran.code == 0
        return ran.output

    rl = stage("read", "rl_read", [raw / "rl.jsonl"], "--form", "numina", "--name", "rl", "--workers", "1")
    unsolvable = stage(
        "read", "un", [raw / "unsolvable.jsonl"], "--form", "plain", "--name", "unsolvable", "--workers", "1"
    )
    rl = stage("dedup", "rl_unique", [stage("filter", "rl_filtered", [rl, unsolvable])])
    rl = stage("choices", "rl", [stage("decontaminate", "rl_clean", [rl], *held)], *model)
    words = ["--form", "numina", "--name", "open", "read.without_truth=keep", "--workers", "1"]
    rest = stage("filter", "open_filtered", [stage("read", "open_read", [raw / "open.jsonl"], *words)])
    rest = stage("decontaminate", "open_clean", [rest], *held, "--against", str(rl))
    supervised = stage("sft", "sft", [rest], *model)

    assert report.stages(tmp_path)[1] == []
    found, missed = report.planted(raw, tmp_path)
    assert [one for one in missed if not one.startswith("unsolvable") and "wrong gold" not in one] == []
    kinds = dict(zip(found.columns[0].cells, found.columns[2].cells, strict=True))
    assert {kind for kind, rules in kinds.items() if rules == "none 8"} == {*LATER, "rl: choices"}
    planted = json.loads((raw / "planted.json").read_text())
    clean = {f"rl-{n:07d}" for n in range(90)} - planted.keys()
    assert len({row["id"] for row in read_rows(rl)} & clean) >= 85, "rows that are fine stay"
    rewritten = [row for row in read_rows(rl) if planted.get(row["id"], {}).get("kind") == "choices"]
    assert len(rewritten) == 8 and all(
        row["reward_model"]["ground_truth"] == str(counted(row["problem"])) for row in rewritten
    )
    learned = read_sft_rows([str(supervised)])
    assert len(learned) >= 50 and all(form_problem(row.messages[-1].content) is None for row in learned)


def test_configs_fit_together() -> None:
    sft, prime = load_sft_config(str(CHAIN / "sft.yaml"), []), load_train_config(str(CHAIN / "prime.yaml"), [])
    assert prime.models.policy.path == f"{sft.run.output_dir}/model"
    assert sft.model == f"{prime.eval.suite_data}/model"
    for name in ("curate.yaml", "suite.yaml"):
        assert json.dumps(make_sources.WORDING)[1:-1] in (CHAIN / name).read_text()
    large = load_sft_config(str(EXAMPLES / "eurus2/sft.yaml"), [])
    rl = load_train_config(str(EXAMPLES / "eurus2/prime.yaml"), [])
    assert rl.models.policy.path == f"{large.run.output_dir}/model"
    readme = (EXAMPLES / "eurus2/README.md").read_text().replace("$D", "runs/eurus2")
    assert f"--output {large.data.train[0]} " in readme and f"--output {rl.data.train[0]} " in readme


def test_the_supervised_stage_fits_its_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_folder(tmp_path, "Qwen2.5-Math-7B")
    assert main(["validate", str(EXAMPLES / "eurus2/sft.yaml"), f"model={model}"]) == 0
    fits = re.search(r"^# fits: the \w+ needs most and leaves (\d+)% of", capsys.readouterr().out, re.M)
    assert fits is not None and int(fits[1]) >= 5
