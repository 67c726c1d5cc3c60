"""Where a piece of a Hugging Face tensor lives in a rank's parameters: the language of load, export and reshard."""

from __future__ import annotations

from dataclasses import dataclass

Region = tuple[tuple[int, int], ...]
"""Start and stop along each dimension."""


@dataclass(frozen=True)
class ShardSlice:
    """param[local] of model chunk ``chunk`` holds hf_name[hf]; both regions have the same shape."""

    param: str
    chunk: int
    local: Region
    hf_name: str
    hf: Region
    hf_shape: tuple[int, ...]
    """Shape of the whole Hugging Face tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.hf)


def as_slices(region: Region) -> tuple[slice, ...]:
    """The region as an index."""
    return tuple(slice(start, stop) for start, stop in region)
