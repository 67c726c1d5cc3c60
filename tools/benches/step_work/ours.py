"""Our side of the step bench: the trainer of `prime-megatron train`, one process, the embedded engine.

    python -m tools.benches.step_work.ours {policy_only|prime} FOLDER STEPS

Like `trl_peer`: one step for every line on standard input, one JSON line {"cpu_s": ...} each. A step is everything the
trainer does between two steps' beginnings: rollout to weight sync, metrics, samples.jsonl. FOLDER holds `model`.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prime_megatron.config import TrainConfig
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.run import assemble
from prime_megatron.trainer import PrimeTrainer
from prime_megatron.verify import Verdict, Verifiers
from prime_megatron.verify.exact import RuleVerifier

from . import task

ABILITY = "bench"
SIDES: dict[str, dict[str, Any]] = {"policy_only": {"process_weight": 0.0}, "prime": {}}
"""The advantage section: outcome RLOO is what TRL's RLOO does; in PRIME's step, the default, the PRM learns too."""


def settings(folder: Path, name: str, *, steps: int, advantage: dict[str, Any], ability: str = ABILITY) -> TrainConfig:
    """A run on the task, float32; every group is kept, nothing is evaluated, saved or exported."""
    return TrainConfig.model_validate(
        {
            "run": {"output_dir": str(folder / name), "steps": steps},
            "models": {
                "dtype": "float32",
                "policy": {"path": str(folder / "model"), "optimizer": {"lr": task.LEARNING_RATE}},
                "prm": {"optimizer": {"lr": task.LEARNING_RATE}},
            },
            "data": {"train": (task.make_prompts(folder / f"{name}.jsonl", task.PROMPTS * steps, ability),)},
            "rollout": {
                "engine": "embedded",
                "prompts_per_step": task.PROMPTS,
                "samples_per_prompt": task.SAMPLES,
                "sampling": {"max_response_tokens": task.NEW_TOKENS},
                "filter": {"lower": 0.0, "upper": 1.0},
            },
            "advantage": advantage,
            "checkpoint": {"save_final": False, "export_final": False},
            "log": {"tensorboard": False},
        }
    )


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[PrimeTrainer]:
    """The trainer, ready for step 1: weights in the engine, logs open.

    Two things are the task's: its rule scores the answers, and no token ends a response, so that all are as long.
    """
    rule = RuleVerifier(lambda response, truth: Verdict(task.reward(response), "partial", ""))

    def endless(folder: str, *args: Any, **kwargs: Any) -> Tokenizer:
        return Tokenizer(load_tokenizer(folder, *args, **kwargs).hf, folder, ())

    with (
        mock.patch.object(assemble, "build_verifiers", return_value=Verifiers({ABILITY: rule})),
        mock.patch("prime_megatron.run.inputs.load_tokenizer", endless),
        assemble.open_parts(config, resume=None, overwrite=True) as parts,
    ):
        trainer = PrimeTrainer(config, parts)
        parts.reporter.start()
        trainer.publish(0)
        yield trainer


def main() -> None:
    side, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    results, sys.stdout = sys.stdout, sys.stderr
    with opened(settings(folder, side, steps=steps, advantage=SIDES[side])) as trainer:
        print("{}", file=results, flush=True)
        for index in range(1, steps + 1):
            if not sys.stdin.readline():
                raise SystemExit("ours: the bench is gone")
            begin = time.process_time()
            trainer.finish_step(index)
            print(json.dumps({"cpu_s": time.process_time() - begin}), file=results, flush=True)


if __name__ == "__main__":
    main()
