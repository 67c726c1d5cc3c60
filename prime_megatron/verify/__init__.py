"""Outcome rewards: one verdict for every response. Start at `build_verifiers`."""

from prime_megatron.verify.answer import FAILURES, VERDICTS, Answer, Verdict, Verifier
from prime_megatron.verify.exact import RuleVerifier
from prime_megatron.verify.registry import Verifiers, VerifyOptions, build_verifiers

__all__ = [
    "FAILURES", "VERDICTS", "Answer", "RuleVerifier", "Verdict", "Verifier", "Verifiers", "VerifyOptions",
    "build_verifiers",
]  # fmt: skip
