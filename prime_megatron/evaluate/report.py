"""Figures as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from prime_megatron.evaluate.figures import SetFigures
from prime_megatron.evaluate.results import Comparison
from prime_megatron.evaluate.statistics import Interval

WIDTH = 120


def print_figures(figures: Mapping[str, SetFigures], macro: Interval, seconds: Mapping[str, float]) -> None:
    """One row a set, then the macro average."""
    table = Table("set", "questions", "avg@n", "95 %", "pass@n", "maj@n", "tokens", "cut", "no answer", "grader", "s")
    for name, own in figures.items():
        n = own.num_samples
        table.add_row(
            name,
            str(own.num_questions),
            f"{own.accuracy.value:.1%} @{n}",
            _range(own.accuracy),
            f"{own.pass_at[n]:.1%}",
            f"{own.majority_at[n]:.1%}" if own.majority_at else "-",
            "-" if own.response_tokens is None else f"{own.response_tokens:.0f}",
            f"{own.truncated:.1%}",
            f"{own.no_answer:.1%}",
            f"{own.grader_timeout + own.grader_failed:.1%}",
            f"{seconds[name]:.0f}",
        )
    table.add_row("macro average", "", f"{macro.value:.1%}", _range(macro), *[""] * 7)
    Console(width=WIDTH).print(table)


def print_comparison(comparison: Comparison) -> None:
    """One row a set; models are called different where the interval of their difference does not hold zero."""
    table = Table("set", "first", "second", "second - first", "95 %", "")
    for one in comparison.differences:
        table.add_row(
            one.name,
            f"{one.first:.1%}",
            f"{one.second:.1%}",
            f"{100 * one.interval.value:+.1f}",
            f"{100 * one.interval.low:+.1f} to {100 * one.interval.high:+.1f}",
            "different" if one.different else "no difference shown",
        )
    Console(width=WIDTH).print(table)
    for note in comparison.notes:
        print(f"note: {note}")


def _range(interval: Interval) -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"
