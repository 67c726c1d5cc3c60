"""The ways of the weights into an engine's process; each can bring a restarted engine back to the last update."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.rollout.broadcast import TIMEOUT, make_group, send_flat
from prime_megatron.rollout.live_weights import bit_sums, open_segment
from prime_megatron.rollout.process import EngineProcess
from prime_megatron.rollout.spool import Spool
from prime_megatron.types import Bucket

Layout = Sequence[Sequence[ShardSlice]]
"""What each tensor-parallel rank of the engine holds."""


class Uplink(Protocol):
    """One transport, used by the replica's leader alone (but for ``close``)."""

    @property
    def paths(self) -> list[str]:
        """Segments of live weights by tensor-parallel rank; none for other transports."""
        ...

    def begin(self) -> None:
        """A new update starts."""
        ...

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """Pass on a bucket of whole Hugging Face tensors."""
        ...

    def finish(self, process: EngineProcess, version: int) -> None:
        """All is there: commit it as this version and compare checksums. Raises RunError that names a tensor."""
        ...

    def restore(self, process: EngineProcess, version: int) -> None:
        """Give a new process what the update in progress, or the last one (version), has brought so far."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class LiveUplink:
    """Segments that the trainer owns and the engine lives in. They outlive the engine, so nothing is sent twice.

    The files have no name on disk: they are gone with the last process that maps them.
    """

    def __init__(self, tensor: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._files = [os.memfd_create(f"prime-engine-{rank}", os.MFD_CLOEXEC) for rank in range(tensor)]
        self._proven = False

    @property
    def paths(self) -> list[str]:
        """Valid on this node while this process lives."""
        return [f"/proc/{os.getpid()}/fd/{file}" for file in self._files]

    def begin(self) -> None:
        """Nothing to prepare."""

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """Never asked: live weights are written in place."""
        raise RunError("weight sync: the engine's weights are written in place, not sent")

    def finish(self, process: EngineProcess, version: int) -> None:
        """See `Uplink.finish`. Once per process: that the engine reads the memory that the trainer writes."""
        process.call("commit", timeout_s=self._timeout_s, version=version)
        if not self._proven:
            expected = [bit_sums(open_segment(path).items()) for path in self.paths]
            compare(expected, process.call("bit_sums", timeout_s=self._timeout_s), version)
            self._proven = True

    def restore(self, process: EngineProcess, version: int) -> None:
        """See `Uplink.restore`."""
        self._proven = False
        process.call("attach", timeout_s=self._timeout_s, paths=self.paths)
        if version >= 0:
            self.finish(process, version)

    def close(self) -> None:
        """See `Uplink.close`."""
        for file in self._files:
            os.close(file)
        self._files = []


class BucketUplink:
    """Buckets through files in shared memory."""

    def __init__(self, spool: Spool, layout: Layout, dtype: torch.dtype, check_every: int, timeout_s: float) -> None:
        self._spool, self._layout, self._dtype = spool, layout, dtype
        self._check_every, self._timeout_s = check_every, timeout_s
        self._wanted = {piece.hf_name for pieces in layout for piece in pieces}
        self._sent: set[str] = set()
        self._last: list[Path] = []
        """The file that waits until it is known whether another one follows."""
        self._num_updates = 0

    @property
    def paths(self) -> list[str]:
        """See `Uplink.paths`."""
        return []

    def begin(self) -> None:
        """See `Uplink.begin`."""
        self._spool.begin()
        self._sent, self._last = set(), []

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """See `Uplink.send`. Raises RunError for a name that the model has not, or has had already."""
        for name in bucket.names:
            if name not in self._wanted:
                raise RunError(f"weight sync: the engine's model has no tensor {name}")
        if self._sent.issuperset(bucket.names):
            return  # the engine died during this bucket and got it with the others
        path = self._spool.write(bucket)
        self._sent |= set(bucket.names)
        self._push(process, last=False)
        self._last = [path]

    def finish(self, process: EngineProcess, version: int) -> None:
        """See `Uplink.finish`."""
        missing = sorted(self._wanted - self._sent)
        if missing:
            raise RunError(
                f"weight sync of version {version}: {len(missing)} tensors are missing, such as {missing[0]}"
            )
        self._push(process, last=True)
        process.call("commit", timeout_s=self._timeout_s, version=version)
        self._num_updates += 1
        if self._check_every and self._num_updates % self._check_every == 0:
            expected = [self._spool.bit_sums(pieces, self._dtype) for pieces in self._layout]
            compare(expected, process.call("bit_sums", timeout_s=self._timeout_s), version)

    def restore(self, process: EngineProcess, version: int) -> None:
        """See `Uplink.restore`."""
        files = self._spool.files
        for path in files[:-1]:
            self._load(process, path, last=False)
        self._last = files[-1:]
        if version >= 0:
            self.finish(process, version)

    def close(self) -> None:
        """See `Uplink.close`."""
        self._spool.close()

    def _push(self, process: EngineProcess, *, last: bool) -> None:
        for path in self._last:
            self._load(process, path, last=last)
        self._last = []

    def _load(self, process: EngineProcess, path: Path, *, last: bool) -> None:
        process.call("load_file", timeout_s=self._timeout_s, path=str(path), last=last)


class DiskUplink(BucketUplink):
    """The buckets as a Hugging Face folder that the engine loads at the end."""

    def _load(self, process: EngineProcess, path: Path, *, last: bool) -> None:
        if last:
            process.call("load_folder", timeout_s=self._timeout_s, path=str(path.parent))


class BroadcastUplink(BucketUplink):
    """The buckets over a gloo group of this rank and the engine's."""

    def __init__(self, spool: Spool, layout: Layout, dtype: torch.dtype, check_every: int, timeout_s: float) -> None:
        super().__init__(spool, layout, dtype, check_every, timeout_s)
        self._num_groups = 0
        self._group: ProcessGroup | None = None
        self._store: dist.TCPStore | None = None

    def restore(self, process: EngineProcess, version: int) -> None:
        """See `Uplink.restore`: with a group of its own for every process."""
        self._join(process)
        super().restore(process, version)

    def _join(self, process: EngineProcess) -> None:
        self._num_groups += 1
        name, world_size = f"weights-{self._num_groups}", 1 + len(self._layout)
        address = "127.0.0.1"
        # Port 0: the store finds a free one, and keeps it.
        self._store = dist.TCPStore(address, 0, None, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        port, store = self._store.port, self._store

        def join() -> None:
            self._group = make_group(address, port, name, rank=0, world_size=world_size, store=store)

        group = {"address": address, "port": port, "name": name}
        process.call("join", timeout_s=self._timeout_s, while_waiting=join, group=group)

    def _load(self, process: EngineProcess, path: Path, *, last: bool) -> None:
        named = list(self._spool.read(path))
        shapes = [[name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in named]
        group = self._group
        assert group is not None
        process.call(
            "receive",
            timeout_s=self._timeout_s,
            while_waiting=lambda: send_flat(group, [tensor for _, tensor in named]),
            shapes=shapes,
            last=last,
        )


def compare(expected: Sequence[dict[str, int]], got: Sequence[dict[str, int]], version: int) -> None:
    """Raise RunError with the first tensor whose bits differ between trainer and engine."""
    assert len(expected) == len(got), "one set of checksums per tensor-parallel rank"
    for rank, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        names = [name for name in sorted(theirs) if name not in ours or ours[name] != theirs[name]]
        names += sorted(ours.keys() - theirs.keys())
        if names:
            raise RunError(
                f"weight sync of policy version {version}: {len(names)} tensors of engine rank {rank} differ from "
                f"the trainer's, the first is {names[0]}"
            )
