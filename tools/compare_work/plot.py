"""The plot of the study: sampled accuracy over steps at the best rates and at the common one, and greedy beside it."""

from __future__ import annotations

import statistics
from pathlib import Path

from tools.compare_work.arms import ARMS, COMMON_RATE, HEADLINE
from tools.compare_work.curves import Curve
from tools.compare_work.one_run import Study
from tools.compare_work.record import Records
from tools.compare_work.report import Found, found
from tools.compare_work.study import BEST, COMMON

COLOURS = {
    "rloo": "tab:orange",
    "local_credit": "tab:blue",
    "default": "tab:green",
    "ipvrm": "tab:red",
    "truth": "tab:gray",
}


def plot(records: Records, study: Study, path: Path) -> None:
    """Thin lines for seeds, a thick one for their mean; every curve smoothed over three evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    best, common = found(records, study, BEST), found(records, study, COMMON)
    figure, panels = pyplot.subplots(1, 3, figsize=(13.0, 4.0), sharey=True)
    _draw(panels[0], best, "sampled_curve", "sampled, each at its best rate")
    _draw(panels[1], common, "sampled_curve", f"sampled, all at {COMMON_RATE:g}")
    _draw(panels[2], best, "greedy_curve", "greedy, each at its best rate")
    panels[0].set_ylabel("held-out accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axes: object, by_arm: Found, which: str, title: str) -> None:
    for arm in ARMS:
        curves: list[Curve] = [getattr(each.record, which).smoothed() for each in by_arm[arm.name]]
        if arm.table != HEADLINE or not curves:
            continue
        colour = COLOURS[arm.name]
        for curve in curves:
            axes.plot(curve.steps, curve.values, color=colour, alpha=0.25, linewidth=1)
        mean = [statistics.fmean(values) for values in zip(*(curve.values for curve in curves), strict=True)]
        axes.plot(curves[0].steps, mean, color=colour, linewidth=2.5, label=f"{arm.title} ({len(curves)} seeds)")
    axes.set(title=title, xlabel="step", ylim=(0.0, 1.02))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(loc="lower right", fontsize=8)
