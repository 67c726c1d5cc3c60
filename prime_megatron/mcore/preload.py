"""Imports everything a worker needs, and nothing else: for fork servers."""

from prime_megatron.mcore import hf_weights, initialize, model  # noqa: F401
