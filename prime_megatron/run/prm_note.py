"""prm.json in a PRM's folder: what its weights need to mean a reward, the reference and the coefficient."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prime_megatron.checkpoint.contents import changed_parts, folder_contents
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
