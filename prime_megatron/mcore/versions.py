"""The releases of megatron-core that are tested, and the one place that knows where they differ.

Bugs of a release stand in fixes.py, with the versions that have them. What changed its form stands here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from prime_megatron.errors import InputError

TESTED = {"0.16.1": ("3.11",), "0.19.2": ("3.12", "3.13")}
"""Release -> the Pythons whose requirements name it (requirements/run.txt)."""
TE_RUN: frozenset[tuple[str, str]] = frozenset()
"""(Transformer Engine, megatron-core) whose layers have run on a GPU, which is what models.layers auto takes. A pair
gets here once ``tools/gpu_check.py`` ended well with both: it holds these layers against ours, and trains with them."""
UNTESTED_VARIABLE = "PRIME_MEGATRON_UNTESTED_MCORE"
_DEPRECATIONS = {
    "models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "distributed.distributed_data_parallel": "full_param_layout not provided",
    "dist_checkpointing.strategies.torch": "async save is deprecated",
}
"""Module of megatron-core -> what 0.19 logs there at every start and no user can act on (docs/design-decisions.md)."""


def installed() -> Version:
    """The release that is installed. Raises InputError: none is."""
    try:
        return Version(version("megatron-core"))
    except PackageNotFoundError:
        raise InputError(f"megatron-core is not installed: pip install megatron-core=={_here()}") from None


def require_tested() -> None:
    """Refuse a release whose internals were never tried with this project, unless the variable asks for it.

    Raises:
        InputError: naming the tested releases; or that triton is missing, which 0.18 and later import without need.
    """
    found = installed()
    if str(found) not in TESTED and os.environ.get(UNTESTED_VARIABLE) != "1":
        tested = ", ".join(f"{release} on Python {' and '.join(pythons)}" for release, pythons in TESTED.items())
        raise InputError(
            f"megatron-core {found} was not tested with this project; tested: {tested}. "
            f"pip install megatron-core=={_here()}, or set {UNTESTED_VARIABLE}=1 to try it"
        )
    if found >= Version("0.18") and importlib.util.find_spec("triton") is None:
        raise InputError(f"megatron-core {found} imports triton on every machine: pip install -r requirements/run.txt")


def mlp_submodules(layer: Any) -> Any:
    """The feed-forward's parts in a layer's spec: from 0.18 on they are an argument of a partial call."""
    return layer.mlp.submodules if hasattr(layer.mlp, "submodules") else layer.mlp.keywords["submodules"]


def save_options() -> dict[str, str]:
    """Arguments of a save strategy's async_save: from 0.17 on it takes another package's writer unless told."""
    return {"async_strategy": "mcore"} if installed() >= Version("0.17") else {}


def experts_are_marked() -> bool:
    """Whether experts' parameters are marked as such by their tensor size, too: from 0.19 on."""
    return installed() >= Version("0.19")


def quiet_deprecations() -> None:
    """Keep what only this project's developers can act on off every run's console; `python -W always` shows it."""
    if sys.warnoptions:
        return
    for module, text in _DEPRECATIONS.items():
        logger = logging.getLogger(f"megatron.core.{module}")
        logger.addFilter(lambda record, text=text: text not in record.getMessage())


def _here() -> str:
    """The tested release of this Python; the newest where none is."""
    python = "{}.{}".format(*sys.version_info[:2])
    return next((release for release, pythons in TESTED.items() if python in pythons), list(TESTED)[-1])
