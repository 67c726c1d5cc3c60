"""Fixes for megatron-core bugs that exist on every device, each gated by the versions that have it.

Every fix names the upstream lines, what goes wrong, and has a regression test that fails without it
(tests/unit/test_mcore_upstream_fixes.py).
"""

from __future__ import annotations


def apply() -> tuple[str, ...]:
    """Applies the fixes that this megatron-core needs; safe to call twice. Returns their names."""
    return ()
