"""sha256 of every file of a checkpoint, and whether a folder still is what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from prime_megatron.checkpoint.layout import MANIFEST_FILE, MARKER_FILE
from prime_megatron.errors import InputError
from prime_megatron.strict_json import read_json

FORMAT = 1
"""Of the unit on disk; another number is refused."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, known: Mapping[str, str]) -> None:
    """Hash, make durable and list every file of a folder; called once everything else is written.

    Args:
        folder: the checkpoint under its temporary name.
        known: relative path -> sha256 of files that were hashed (and fsynced) where they were written.
    """
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        digest = known[name] if name in known else _durable_sha256(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    lost = set(known) - set(files)
    if lost:
        raise OSError(f"{folder}: written files are gone: {sorted(lost)}")
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8")
    sync(manifest)
    for path in [*(entry for entry in folder.rglob("*") if entry.is_dir()), folder]:
        sync(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a written checkpoint its name, then its completion marker; each is durable before the next."""
    os.rename(temporary, final)
    sync(final.parent)
    marker = final / MARKER_FILE
    marker.write_text(file_sha256(final / MANIFEST_FILE) + "\n", encoding="utf-8")
    sync(marker)
    sync(final)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None: it is complete and every byte is as written."""
    return structural_damage(folder) or content_damage(folder, 0, 1)


def structural_damage(folder: Path) -> str | None:
    """What is wrong with it short of the files' content."""
    if folder.is_symlink() and not folder.exists():
        return f"is a link to {os.readlink(folder)}, which is not there"
    if not folder.is_dir():
        return "is not a folder"
    marker, manifest = folder / MARKER_FILE, folder / MANIFEST_FILE
    if not marker.is_file():
        return f"has no {MARKER_FILE}: it was never finished"
    if not manifest.is_file():
        return f"has no {MANIFEST_FILE}"
    try:
        if marker.read_text(encoding="utf-8").strip() != file_sha256(manifest):
            return f"has another {MANIFEST_FILE} than its {MARKER_FILE} speaks of"
        listed = read_json(manifest)
        if listed["format"] != FORMAT:
            return f"has format {str(listed['format'])[:80]}; this version reads {FORMAT}"
        for name, entry in listed["files"].items():
            path = folder / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"lists {name[:200]!r}, which lies outside of it"
            if not path.is_file():
                return f"lacks {name}"
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"has {name} cut to {size} bytes of {entry['bytes']}"
            if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
                return f"has a {MANIFEST_FILE} that says nothing of {name}"
    except InputError as error:
        return f"has a damaged {MANIFEST_FILE} ({error})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
    return None


def content_damage(folder: Path, part: int, num_parts: int) -> str | None:
    """The first file whose sha256 differs, among every ``num_parts``-th file from ``part`` on (largest first)."""
    try:
        files = read_json(folder / MANIFEST_FILE)["files"]
        ordered = sorted(files, key=lambda name: (-files[name]["bytes"], name))
        for name in ordered[part::num_parts]:
            if file_sha256(folder / name) != files[name]["sha256"]:
                return f"has a changed {name} (its sha256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror}: {error.filename})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _durable_sha256(path: Path) -> str:
    sync(path)
    return file_sha256(path)
