"""TRL's side of the step bench, run by an environment that has TRL: one step for every line on standard input.

    .venv-trl/bin/python tools/benches/step_work/trl_peer.py {rloo|grpo} MODEL STEPS

Prints the versions as a JSON line, then one JSON line a step: {"cpu_s": CPU seconds of this process}. The work is that
of `task`: on-policy, no reference model, responses of exactly NEW_TOKENS tokens, one update on the whole batch.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled"
)
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import task  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

TRAINERS = {"rloo": (trl.RLOOTrainer, trl.RLOOConfig), "grpo": (trl.GRPOTrainer, trl.GRPOConfig)}


class OneByOne(transformers.TrainerCallback):
    """Waits for a line before each step and reports the step's CPU seconds after it."""

    def __init__(self, report) -> None:
        self.report = report
        self.begin = 0.0

    def on_step_begin(self, *args, **kwargs) -> None:
        if not sys.stdin.readline():
            raise SystemExit("trl_peer: the bench is gone")
        self.begin = time.process_time()

    def on_step_end(self, *args, **kwargs) -> None:
        self.report({"cpu_s": time.process_time() - self.begin})


def main() -> None:
    algorithm, model, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results, sys.stdout = sys.stdout, sys.stderr

    def report(row: dict) -> None:
        print(json.dumps(row), file=results, flush=True)

    trainer_class, config_class = TRAINERS[algorithm]
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            seed=0,
            report_to=[],
            logging_steps=10**6,
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            per_device_train_batch_size=task.PROMPTS * task.SAMPLES,
            gradient_accumulation_steps=1,
            max_steps=steps,
            num_generations=task.SAMPLES,
            num_iterations=1,
            max_completion_length=task.NEW_TOKENS,
            generation_kwargs={"min_new_tokens": task.NEW_TOKENS},
            temperature=1.0,
            beta=0.0,
            learning_rate=task.LEARNING_RATE,
        )
        trainer = trainer_class(
            model=model,
            reward_funcs=lambda completions, **_: [task.reward(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": task.prompts(task.PROMPTS * steps)}),
            processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(model),
        )
        trainer.add_callback(OneByOne(report))
        report({"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__})
        trainer.train()


if __name__ == "__main__":
    main()
