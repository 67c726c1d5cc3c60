"""MODEL on the command line: an HF folder as it is, or a checkpoint of a run as one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prime_megatron.checkpoint.layout import CONFIG_FILE, MANIFEST_FILE
from prime_megatron.config.strict_yaml import parse_file
from prime_megatron.errors import InputError

_ROLE = "policy"


@contextmanager
def model_folder(model: str, template: str | None, scratch: Path) -> Iterator[str]:
    """The HF folder of a model; that of a checkpoint is made in ``scratch`` and goes with the block.

    Args:
        model: an HF folder, a run's checkpoint (step-00000040), or a role's folder in one.
        template: HF folder that gives a checkpoint's config and tokenizer; None: models.policy.path of its run.

    Raises:
        InputError: none of these, or a checkpoint whose run's model folder is gone.
    """
    path = Path(model)
    if not path.is_dir():
        raise InputError(f"{model}: no such model folder; name an HF folder or a checkpoint of a run")
    if (path / "config.json").is_file():
        yield model
        return
    role = path / _ROLE if (path / MANIFEST_FILE).is_file() else path
    if not (role / ".metadata").is_file():
        raise InputError(f"{model}: neither an HF model folder (config.json) nor a checkpoint of a run")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _convert(role, scratch, Path(template) if template is not None else _template_of(role))
        yield str(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _template_of(role: Path) -> Path | None:
    """The folder that the checkpoint's run started from; None where the checkpoint has a folder of its own."""
    if (role / "hf").is_dir():
        return None
    config = role.parent / CONFIG_FILE
    if not config.is_file():
        raise InputError(f"{role}: a checkpoint without its run's config; name the model's HF folder with --template")
    value = parse_file(config).value
    folder = value["model"] if "model" in value else value["models"]["policy"]["path"]
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: the run's model folder is not there; name one like it with --template")
    return Path(folder)


def _convert(role: Path, target: Path, template: Path | None) -> None:
    from prime_megatron.convert.to_hf import MegatronToHf

    print(f"{role}: as an HF folder, for this command", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    MegatronToHf(role, target, None, template).run(lambda num_bytes: None)
