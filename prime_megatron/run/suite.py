"""eval.suite of a training run: read, worded and encoded as `prime-megatron evaluate` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.evaluate.contract import grader_contract, set_contract, suite_contract
from prime_megatron.evaluate.item import Item
from prime_megatron.evaluate.ready import ReadySet, make_ready
from prime_megatron.evaluate.results import write_json
from prime_megatron.evaluate.sets import read_sets
from prime_megatron.evaluate.suite import Suite, load_suite
from prime_megatron.generate.gradable import check_gradable
from prime_megatron.generate.identity import text_digests
from prime_megatron.run.offline import model_context
from prime_megatron.verify import Verifiers, VerifyOptions

CONTRACT_FILE = "evaluation-contract.json"
"""In the run's folder."""


@dataclass(frozen=True)
class AskedSuite:
    """The suite as the policy is asked it."""

    suite: Suite
    ready: tuple[ReadySet, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        return max(one.longest for one in self.ready)

    def write_contract(self, output: Path, config: TrainConfig, options: VerifyOptions) -> None:
        """What stands beside the figures of metrics.jsonl; the weights are those of each line's step."""
        folder = policy_folder_of(config)
        model = {"engine": config.rollout.engine, "dtype": config.rollout.dtype or config.models.dtype}
        write_json(
            output / CONTRACT_FILE,
            {
                "suite": suite_contract(self.suite),
                "model": model | {"folder": folder, "files": text_digests(folder)},
                "grader": grader_contract(options),
                "sets": {one.name: set_contract(one.config, one.questions, one) for one in self.ready},
            },
        )


def read_suite(config: TrainConfig) -> tuple[Suite, dict[str, list[Item]]] | None:
    """The suite and its sets' items; None: the run has none. Raises InputError as ``load_suite`` and ``read_set``."""
    if config.eval.suite is None:
        return None
    suite = load_suite(config.eval.suite, config.eval.suite_data, config.eval.suite_mode, {})
    return suite, read_sets(suite)


def ask_suite(config: TrainConfig, tokenizer: Tokenizer, verifiers: Verifiers) -> AskedSuite | None:
    """The sets as the policy reads them; None: the run has no suite.

    Raises:
        InputError: as `read_suite`, a set that cannot be graded here, or that this model cannot be asked.
    """
    found = read_suite(config)
    if found is None:
        return None
    suite, items = found
    for own in items.values():
        check_gradable([item.question for item in own], verifiers)
    engine = "embedded" if config.rollout.engine == "replay" else config.rollout.engine
    trust = config.models.trust_remote_code
    context = model_context(policy_folder_of(config), engine, trust_remote_code=trust)
    ready = [
        make_ready(name, suite.sets[name], own, tokenizer, seed=suite.seed, block=suite.block, context=context)
        for name, own in items.items()
    ]
    return AskedSuite(suite, tuple(ready))
