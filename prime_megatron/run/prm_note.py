"""prm.json in a PRM's folder: what its weights need to mean a reward, the reference and the coefficient."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prime_megatron.checkpoint.contents import changed_parts, folder_contents
from prime_megatron.config import PrmKind, PrmReference, TrainConfig
from prime_megatron.config.check import needs_prm
from prime_megatron.errors import InputError

NOTE_FILE = "prm.json"


@dataclass(frozen=True)
class PrmNote:
    """The reward of a response token is beta * (log PRM - log reference)."""

    reference: str
    """HF folder of the reference, absolute."""
    beta: float
    loss: str
    """What the PRM learned with (prm.loss)."""
    reference_contents: dict[str, str]
    """Digests of the reference's files when the note was written, as a checkpoint has them."""


def note_of(reference: str, *, beta: float, loss: str) -> PrmNote:
    """A note on this folder as it is now."""
    folder = Path(reference).resolve()
    return PrmNote(str(folder), beta, loss, folder_contents(folder))


def write_note(folder: Path, note: PrmNote) -> None:
    """Put the note into a PRM's folder."""
    (folder / NOTE_FILE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")


def read_note(folder: str) -> PrmNote | None:
    """The note of a folder; None where it has none.

    Raises:
        InputError: a file that is no note.
    """
    path = Path(folder) / NOTE_FILE
    if not path.is_file():
        return None
    try:
        return PrmNote(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not what an export writes ({error}); give reference and beta yourself") from None


def check_reference(folder: str, note: PrmNote) -> None:
    """Whether the reference that a note names is still what the PRM learned against.

    Raises:
        InputError: it is gone, or its content is another.
    """
    if not Path(note.reference).is_dir():
        raise InputError(
            f"{folder}/{NOTE_FILE}: its reference {note.reference} is not there; name it with reference=FOLDER"
        )
    changed = changed_parts(note.reference_contents, folder_contents(Path(note.reference)))
    if changed:
        raise InputError(
            f"{folder}/{NOTE_FILE}: its reference {note.reference} is not what it was ({', '.join(changed)}); give "
            "reference=FOLDER of the one that the PRM learned against"
        )


def reference_warning(config: TrainConfig) -> str | None:
    """What a run should be told whose PRM names a reference: that it scores against another. None: nothing."""
    prm, reference = config.models.prm.path, config.models.reference
    implicit = needs_prm(config) and config.prm.kind is PrmKind.implicit
    note = None if prm is None or not implicit else read_note(prm)
    if note is None or config.prm.reference is PrmReference.policy:
        return None
    if reference is None:
        return (
            f"models.prm.path: {prm} was trained against {note.reference}, and models.reference is not set: what it "
            "learned is not in its rewards, which start at 0; set models.reference to that folder"
        )
    changed = changed_parts(note.reference_contents, folder_contents(Path(reference)))
    if changed:
        return f"models.reference: {reference} is not what {prm} was trained against ({', '.join(changed)})"
    return None
