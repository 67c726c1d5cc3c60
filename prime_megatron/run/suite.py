"""eval.suite of a training run: read, worded and encoded as `prime-megatron evaluate` does."""

from __future__ import annotations

from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.evaluate.item import Item
from prime_megatron.evaluate.ready import ReadySet, make_ready
from prime_megatron.evaluate.sets import read_sets
from prime_megatron.evaluate.suite import Suite, load_suite
from prime_megatron.generate.gradable import check_gradable
from prime_megatron.run.offline import model_context
from prime_megatron.verify import Verifiers


def read_suite(config: TrainConfig) -> tuple[Suite, dict[str, list[Item]]] | None:
    """The suite and its sets' items; None: the run has none. Raises InputError as ``load_suite`` and ``read_set``."""
    if config.eval.suite is None:
        return None
    suite = load_suite(config.eval.suite, config.eval.suite_data, config.eval.suite_mode, {})
    return suite, read_sets(suite)


def ready_sets(config: TrainConfig, tokenizer: Tokenizer, verifiers: Verifiers) -> tuple[ReadySet, ...]:
    """The sets as the policy reads them.

    Raises:
        InputError: as `read_suite`, a set that cannot be graded here, or that this model cannot be asked.
    """
    found = read_suite(config)
    if found is None:
        return ()
    suite, items = found
    for own in items.values():
        check_gradable([item.question for item in own], verifiers)
    engine = "embedded" if config.rollout.engine == "replay" else config.rollout.engine
    context = model_context(policy_folder_of(config), engine, trust_remote_code=config.models.trust_remote_code)
    return tuple(
        make_ready(name, suite.sets[name], own, tokenizer, seed=suite.seed, block=suite.block, context=context)
        for name, own in items.items()
    )
