"""Functions on several gloo ranks, as the parity bench runs them."""

from tools.parity_work.ranks import run_ranks

__all__ = ["run_ranks"]
