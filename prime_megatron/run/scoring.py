"""A run that only scores: from model folders and a layout to the process groups and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prime_megatron import device
from prime_megatron.config import PrmLossKind, ScoreConfig
from prime_megatron.config.check_stage import check_score_config
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.families.read import read_config
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.check_models import check_folder
from prime_megatron.run.prm_note import NOTE_FILE, check_reference, read_note


@dataclass(frozen=True)
class PrmFolders:
    """What a PRM's reward is made of."""

    prm: str
    reference: str
    beta: float
    means: bool
    """The PRM's logit is the mean of a response's rewards (prm.loss prefix_value), not their sum."""


def resolve_prm(prm: str, config: ScoreConfig) -> PrmFolders:
    """The PRM with its reference and coefficient: those given, else those that its folder names.

    Raises:
        InputError: neither names them, or the reference is not what the PRM learned against.
    """
    if not Path(prm).is_dir():
        raise InputError(f"{prm}: no such model folder; name the PRM's HF folder")
    read_config(prm)  # a head of one value is refused by name
    note = read_note(prm)
    if note is not None and config.reference is None:
        check_reference(prm, note)
    reference = config.reference or (None if note is None else note.reference)
    beta = config.beta or (None if note is None else note.beta)
    if reference is None or beta is None:
        missing = "reference=FOLDER" if reference is None else "beta=NUMBER"
        raise InputError(f"{prm}: has no {NOTE_FILE}, which would name its reference and beta; give {missing}")
    if not Path(reference).is_dir():
        raise InputError(f"reference: {reference} is no folder; name the reference's HF folder")
    vocabularies = {folder: read_config(folder).vocab for folder in (prm, reference)}
    if vocabularies[prm] != vocabularies[reference]:
        raise InputError(
            f"reference: {reference} has a vocabulary of {vocabularies[reference]} and the PRM of {vocabularies[prm]}; "
            "both must read the same tokens"
        )
    return PrmFolders(prm, reference, beta, means=note is not None and note.loss == PrmLossKind.prefix_value)


def check_scoring(folders: tuple[str, ...], config: ScoreConfig, world_size: int) -> None:
    """Whether the models can be laid out so; needs no weights. Raises InputError."""
    check_score_config(config, world_size)
    for folder in dict.fromkeys(folders):
        check_folder(
            folder, config.roles_parallel(), world_size, value_head=False, trust_remote_code=config.trust_remote_code
        )


def scoring_tokenizer(folder: str, vocab: int, config: ScoreConfig) -> Tokenizer:
    """The tokenizer of a model that scores. Imports transformers."""
    from prime_megatron.data.chat import ChatOptions
    from prime_megatron.data.tokenizer import load_tokenizer

    options = ChatOptions(*config.template_options())
    return load_tokenizer(folder, vocab, trust_remote_code=config.trust_remote_code, options=options)


@contextmanager
def scoring_groups(config: ScoreConfig) -> Iterator[Topology]:
    """The process groups within the block."""
    topology = start_megatron(
        config.roles_parallel(), seed=0, backend=device.backend_name(), timeout_s=config.parallel.timeout_s
    )
    try:
        yield topology
    finally:
        stop_megatron()
