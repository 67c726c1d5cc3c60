"""Imports everything a worker needs, and nothing else: for fork servers."""

from prime_megatron.mcore import (  # noqa: F401
    initialize,
    model,
    weights,
)
