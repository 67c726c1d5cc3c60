"""Outcome rewards: one verdict for every response. Start at `build_verifiers`."""

from prime_megatron.verify.answer import FAILURES, VERDICTS, Answer, Verdict, Verifier
from prime_megatron.verify.custom import check_custom
from prime_megatron.verify.registry import Verifiers, VerifyOptions, build_verifiers, describe_custom

__all__ = [
    "FAILURES", "VERDICTS", "Answer", "Verdict", "Verifier", "Verifiers", "VerifyOptions", "build_verifiers",
    "check_custom", "describe_custom",
]  # fmt: skip
