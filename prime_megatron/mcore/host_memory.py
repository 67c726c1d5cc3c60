"""Host memory for what leaves the device: as many bytes as are asked for, pinned once, given back when freed."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from prime_megatron import device

SEGMENT_BYTES = 2**30
"""Memory is mapped and pinned in segments of this size: pinning takes long, and its progress is told between them."""
TOLD_EVERY = 8
"""Segments between two lines of progress."""


def pages(nbytes: int) -> int:
    """Bytes of the whole pages that hold so many."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


class Region:
    """Bytes at addresses 0 to ``nbytes``, all of them resident, spread over segments; 0 until they are written, as
    Adam's moments are before there are any."""

    def __init__(self) -> None:
        self._segments: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes really held: whole pages."""
        return sum(segment.numel() for segment in self._segments)

    def grow(self, nbytes: int) -> None:
        """Add a segment of so many bytes, rounded to pages; made resident and pinned here."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mapped = mmap.mmap(-1, pages(nbytes), flags=flags)
        # A child that writes a checkpoint must neither share these pages nor have them copied.
        mapped.madvise(mmap.MADV_DONTFORK)
        segment = torch.frombuffer(mapped, dtype=torch.uint8)
        device.pin(segment)
        self._segments.append(segment)

    def free(self) -> None:
        """Give everything back to the system."""
        for segment in self._segments:
            device.unpin(segment)
        self._segments.clear()

    def write(self, start: int, source: Tensor) -> None:
        """Copy a device's bytes, uint8 [n], to the address ``start``."""
        for place, part in self._parts(start, source):
            place.copy_(part, non_blocking=True)

    def read(self, start: int, target: Tensor) -> None:
        """Inverse of `write`."""
        for place, part in self._parts(start, target):
            part.copy_(place, non_blocking=True)

    def _parts(self, start: int, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(piece of a segment, piece of the tensor) in order: no copy crosses two pinned ranges."""
        done, first = 0, 0
        for segment in self._segments:
            begin = max(start + done - first, 0)
            size = min(segment.numel() - begin, tensor.numel() - done)
            if size > 0:
                yield segment[begin : begin + size], tensor[done : done + size]
                done += size
            first += segment.numel()
        assert done == tensor.numel(), f"{tensor.numel()} bytes at {start} are beyond a region of {first}"


class HostPool:
    """All host memory of one process's models, and the two queues of copies to and from it.

    Args:
        say: is told how far the pinning of a large region is.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._regions: list[Region] = []
        self.arrivals = device.CopyQueue()
        """Host to device."""
        self.departures = device.CopyQueue()
        """Device to host; the other direction of the bus, so both run at once."""

    def take(self, nbytes: int, what: str) -> Region:
        """A region of at least so many bytes; ``what`` names it in the progress."""
        region = Region()
        self._regions.append(region)
        while region.nbytes < nbytes:
            region.grow(min(SEGMENT_BYTES, nbytes - region.nbytes))
            number = -(-region.nbytes // SEGMENT_BYTES)
            last = region.nbytes >= nbytes
            if self._say is not None and nbytes > SEGMENT_BYTES and (last or number % TOLD_EVERY == 0):
                self._say(f"host memory for {what}: {region.nbytes / 2**30:.0f} of {nbytes / 2**30:.0f} GiB are ready")
        return region

    def close(self) -> None:
        """Give everything back, once no copy is under way; no model may move afterwards."""
        self.departures.mark().wait()
        self.arrivals.mark().wait()
        while self._regions:
            self._regions.pop().free()
