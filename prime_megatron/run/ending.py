"""An end that the run itself decides: a starved batch, an engine that is gone for good, too many updates that are not
finite, a full disk, a row that cannot be read. What it has learned is saved before it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prime_megatron.checkpoint.run import Checkpoints
from prime_megatron.errors import Diverged, InputError, PeerLost, RunEnded, RunError


class Ending:
    """Why the run ends itself, if it does; the same on every rank."""

    def __init__(self) -> None:
        self.why: RunError | InputError | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A RunError or InputError, which every rank meets at the same place, ends the block and is kept."""
        try:
            yield
        except PeerLost:
            raise
        except (RunError, InputError) as error:
            self.why = error

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """Be sure that the last finished step is on disk, unless its weights are no numbers. Collective over the world.

        Raises:
            RunError: it cannot be saved; names what ended the run as well.
        """
        if isinstance(self.why, Diverged):
            return
        try:
            checkpoints.save_last(step)
        except RunError as error:
            raise error if self.why is None else RunError(f"{self.why}; {error}") from None

    def tell(self, step: int) -> None:
        """Say how to go on; does nothing where the run did not end itself.

        Args:
            step: the last finished one, which is saved; 0: none.

        Raises:
            RunEnded: exit code 86.
            InputError: bad input before the first finished step is bad input as ever.
        """
        if self.why is None:
            return
        if isinstance(self.why, Diverged):
            raise RunEnded(
                f"{self.why}; it is not saved: go on from an earlier checkpoint with --resume FOLDER, if any"
            )
        if step > 0:
            raise RunEnded(f"{self.why}; step {step} is saved: go on from it with --resume auto")
        if isinstance(self.why, InputError):
            raise self.why
        raise RunEnded(f"{self.why}; no step was finished, so there is nothing to save")
