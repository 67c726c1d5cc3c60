"""Why the filter starves a step, from the responses themselves: the line that ends the run or warns of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prime_megatron.algo.filtering import FilterTally
from prime_megatron.config import RolloutConfig
from prime_megatron.types import Group, Sample
from prime_megatron.verify import FAILURES
from prime_megatron.verify.answer import CORRECT, NO_ANSWER, NO_CODE, PARTIAL

RIGHT, PARTLY, CUT, UNANSWERED, FAILED, WRONG = "right", "partly right", "cut", "unanswered", "failed", "wrong"


def starved_message(
    step: int, kept: int, rounds: int, tally: FilterTally, generated: Sequence[Group], config: RolloutConfig
) -> str:
    """One line: how far the step came, what the filter said of the groups, what became of the responses, the advice.

    Args:
        kept: groups that the batch has, those that waited included.
        generated: every group of this step.
    """
    causes = Counter(cause_of(sample) for group in generated for sample in group.samples)
    limit = config.sampling.max_response_tokens
    parts = [
        f"{causes[RIGHT]} right",
        *([f"{causes[PARTLY]} right in part"] if causes[PARTLY] else []),
        f"{causes[CUT]} cut at {limit} tokens",
        f"{causes[UNANSWERED]} without an answer (no box, no program)",
        f"{causes[WRONG]} wrong",
        f"{causes[FAILED]} on which the verifier failed",
    ]
    return (
        f"step {step}: {kept} of {config.prompts_per_step} prompts after {rounds} rounds; pass rate "
        f"{100.0 * tally.pass_rate:.1f} % ({tally.too_easy} too easy, {tally.too_hard} too hard, {tally.truncated} "
        f"truncated); of {causes.total()} responses: {', '.join(parts)}; {_advice(tally, generated, config)} "
        "(samples.jsonl has some of the rejected responses)"
    )


def cause_of(sample: Sample) -> str:
    """What decided a response's outcome: the limit before the verdict, for a cut response shows no answer."""
    if sample.verdict == CORRECT:
        return RIGHT
    if sample.finish == "length":
        return CUT
    if sample.verdict in FAILURES:
        return FAILED
    if sample.verdict in (NO_ANSWER, NO_CODE):
        return UNANSWERED
    return PARTLY if sample.verdict == PARTIAL else WRONG


def _advice(tally: FilterTally, generated: Sequence[Group], config: RolloutConfig) -> str:
    """What to do about the commonest cause among the groups that the filter dropped."""
    if tally.too_easy >= tally.too_hard + tally.truncated:
        return (
            "the policy already answers most of these prompts: use harder ones, or raise rollout.filter.upper "
            f"({config.filter.upper})"
        )
    if tally.truncated > tally.too_hard:
        return (
            "rollout.filter.drop_truncated drops most of these prompts: raise rollout.sampling.max_response_tokens or "
            "set drop_truncated to false"
        )
    low = [group for group in generated if group.mean_outcome < config.filter.lower]
    causes = Counter(cause_of(sample) for group in low for sample in group.samples)
    worst = max((CUT, UNANSWERED, FAILED, WRONG), key=lambda cause: causes[cause])
    return {
        CUT: f"most are cut: raise rollout.sampling.max_response_tokens ({config.sampling.max_response_tokens})",
        UNANSWERED: "most give no answer that can be found: ask for the form of the answer in the prompts or in "
        "data.system_prompt, or start from a model that keeps to it",
        FAILED: "the verifier fails on most: see its warnings above and verify.timeout_s",
        WRONG: "most are wrong: use easier prompts or a better model, or lower rollout.filter.lower "
        f"({config.filter.lower})",
    }[worst]
