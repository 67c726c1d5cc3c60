"""Stages of `prime-megatron curate` that ask a model: choices, attempts, sft."""

from __future__ import annotations

from prime_megatron.cli.curate_texts import StageVerb

STAGES: dict[str, StageVerb] = {}
