"""The ways of the weights into an engine's process; some can bring a restarted engine back to the last update."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from prime_megatron.errors import EngineDied, RunError
from prime_megatron.types import Bucket
from prime_megatron.weights.broadcast import TIMEOUT, lead_group, send_flat
from prime_megatron.weights.buffer import SharedBuffer, pack, packed_bytes
from prime_megatron.weights.folder import WeightFolder
from prime_megatron.weights.manifest import EngineLayout, Manifest, compare
from prime_megatron.weights.segment import bit_sums, open_segment


class EngineProcess(Protocol):
    """What a transport asks of an engine's process (``rollout.process.process``); each call raises EngineDied."""

    def post(self, operation: str, **arguments: Any) -> None:
        """Have it do something, without waiting for the answer."""
        ...

    def wait(self, timeout_s: float) -> Any:
        """The answer to what was posted."""
        ...

    def call(self, operation: str, *, timeout_s: float, **arguments: Any) -> Any:
        """Post and wait."""
        ...


class Transport(Protocol):
    """One transport, used by the replica's leader alone (but for ``close``)."""

    @property
    def paths(self) -> Sequence[str]:
        """Segments of live weights by tensor-parallel rank; none for other transports."""
        ...

    def begin(self) -> None:
        """A new update starts, from its first bucket."""
        ...

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """Pass on a bucket of whole Hugging Face tensors; its own memory is free again when this returns."""
        ...

    def finish(self, process: EngineProcess, version: int) -> None:
        """All is there: commit it as this version and compare checksums. Raises RunError that names a tensor."""
        ...

    def restore(self, process: EngineProcess, version: int) -> bool:
        """Make a new process ready; True when it has the weights of the last finished update (version) again."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class LiveTransport:
    """Nameless files that the trainer owns and the engine lives in. They outlive the engine: nothing is sent twice."""

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
        """See `Transport.finish`. Once per process: that the engine reads the memory that the trainer writes."""
        process.call("commit", timeout_s=self._timeout_s, version=version)
        if not self._proven:
            expected = [bit_sums(open_segment(path).items()) for path in self.paths]
            compare(expected, process.call("bit_sums", timeout_s=self._timeout_s), version)
            self._proven = True

    def restore(self, process: EngineProcess, version: int) -> bool:
        """See `Transport.restore`."""
        self._proven = False
        process.call("attach", timeout_s=self._timeout_s, paths=self.paths)
        if version >= 0:
            self.finish(process, version)
        return version >= 0

    def close(self) -> None:
        """See `Transport.close`."""
        for file in self._files:
            os.close(file)
        self._files = []


class BucketTransport:
    """Buckets in two shared buffers by turns: the engine reads one while the trainer fills the other.

    Nothing is kept: the trainer must send again what a restarted engine lacks.

    Args:
        layout: of the engine, for names, shapes and checksums.
        dtype: of the engine's weights.
        check_every: compare checksums every n updates, and once for every process; 0: never.
    """

    def __init__(self, layout: EngineLayout, dtype: torch.dtype, check_every: int, timeout_s: float) -> None:
        self._manifest = Manifest(layout, dtype, check_every)
        self._num_ranks, self._timeout_s = len(layout), timeout_s
        self._buffers: list[SharedBuffer] = []
        self._turn = 0
        self._reading = False
        """Whether the engine still reads the bucket before this one."""

    paths: Sequence[str] = ()

    def begin(self) -> None:
        """See `Transport.begin`."""
        self._manifest.begin()
        self._turn, self._reading = 0, False

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """See `Transport.send`. Raises as `Manifest.take`."""
        self._manifest.take(bucket)
        if bucket.names:
            self._pass_on(process, bucket)

    def finish(self, process: EngineProcess, version: int) -> None:
        """See `Transport.finish`."""
        self._manifest.complete(version)
        self._complete(process)
        process.call("commit", timeout_s=self._timeout_s, version=version)
        if self._manifest.due:
            compare(self._manifest.sums(), process.call("bit_sums", timeout_s=self._timeout_s), version)
        self._manifest.end()

    def restore(self, process: EngineProcess, version: int) -> bool:
        """See `Transport.restore`."""
        self._manifest.forget()
        return False

    def close(self) -> None:
        """See `Transport.close`."""
        self._free()

    def _pass_on(self, process: EngineProcess, bucket: Bucket) -> None:
        buffer = self._buffer(packed_bytes(bucket.tensors), bucket.tensors[0].device)
        rows = pack(buffer.flat, bucket.names, bucket.tensors)
        handles = [buffer.handle() for _ in range(self._num_ranks)]
        self._settle(process)
        process.post("load_bucket", handles=handles, rows=rows)
        self._reading = True

    def _buffer(self, num_bytes: int, device: torch.device) -> SharedBuffer:
        """The one that the engine does not read, at least as large."""
        self._turn = 1 - self._turn
        while len(self._buffers) < 2:
            self._buffers.append(SharedBuffer(num_bytes, device))
        if self._buffers[self._turn].flat.numel() < num_bytes:
            self._buffers[self._turn].close()
            self._buffers[self._turn] = SharedBuffer(num_bytes, device)
        return self._buffers[self._turn]

    def _settle(self, process: EngineProcess) -> None:
        """Wait until the engine is done with the bucket before."""
        if self._reading:
            self._reading = False
            process.wait(self._timeout_s)

    def _complete(self, process: EngineProcess) -> None:
        self._settle(process)
        self._free()  # training needs the memory

    def _free(self) -> None:
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []


class BroadcastTransport(BucketTransport):
    """The buckets over a gloo group of this rank and the engine's."""

    def __init__(self, layout: EngineLayout, dtype: torch.dtype, check_every: int, timeout_s: float) -> None:
        super().__init__(layout, dtype, check_every, timeout_s)
        self._num_groups = 0
        self._group: ProcessGroup | None = None
        self._store: dist.TCPStore | None = None

    def restore(self, process: EngineProcess, version: int) -> bool:
        """See `Transport.restore`: with a group of its own for every process."""
        self._num_groups += 1
        name, address = f"weights-{self._num_groups}", "127.0.0.1"
        # Port 0: the store finds a free one, and keeps it.
        self._store = dist.TCPStore(address, 0, None, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        group: dict[str, Any] = {"address": address, "port": self._store.port, "name": name}
        process.post("join", group=group)
        try:
            self._group = lead_group(self._store, name, 1 + self._num_ranks, process.check_alive)
        except RuntimeError as error:
            raise EngineDied(f"it did not join the broadcast group: {error}") from None
        process.wait(self._timeout_s)
        return super().restore(process, version)

    def _pass_on(self, process: EngineProcess, bucket: Bucket) -> None:
        assert self._group is not None
        buffer = self._buffer(packed_bytes(bucket.tensors), torch.device("cpu"))
        rows = pack(buffer.flat, bucket.names, bucket.tensors)
        self._settle(process)
        process.post("receive", rows=rows)
        self._reading = True
        try:
            send_flat(self._group, buffer.flat[: packed_bytes(bucket.tensors)], process.check_alive)
        except RuntimeError as error:
            raise EngineDied(f"the broadcast of weights failed: {error}") from None


class DiskTransport(BucketTransport):
    """The buckets as a Hugging Face folder that the engine loads at the end, and again after a restart."""

    def __init__(
        self, layout: EngineLayout, dtype: torch.dtype, check_every: int, timeout_s: float, folder: WeightFolder
    ) -> None:
        super().__init__(layout, dtype, check_every, timeout_s)
        self._folder = folder

    def begin(self) -> None:
        """See `Transport.begin`."""
        super().begin()
        self._folder.begin()

    def restore(self, process: EngineProcess, version: int) -> bool:
        """See `Transport.restore`."""
        super().restore(process, version)
        if version >= 0:
            self._complete(process)
            process.call("commit", timeout_s=self._timeout_s, version=version)
        return version >= 0

    def close(self) -> None:
        """See `Transport.close`."""
        self._folder.close()

    def _pass_on(self, process: EngineProcess, bucket: Bucket) -> None:
        self._folder.write(bucket)

    def _complete(self, process: EngineProcess) -> None:
        process.call("load_folder", timeout_s=self._timeout_s, path=str(self._folder.folder))


class FolderTransport:
    """Weights that nobody trains: the engine loads a model folder as it is, at the first update and after a restart."""

    def __init__(self, folder: str, timeout_s: float) -> None:
        self._folder, self._timeout_s = folder, timeout_s

    paths: Sequence[str] = ()

    def begin(self) -> None:
        """Nothing to prepare."""

    def send(self, process: EngineProcess, bucket: Bucket) -> None:
        """Never asked: all weights are in the folder."""
        raise RunError("weight sync: the engine's weights come from a folder, not from a trainer")

    def finish(self, process: EngineProcess, version: int) -> None:
        """See `Transport.finish`."""
        process.call("load_folder", timeout_s=self._timeout_s, path=self._folder)
        process.call("commit", timeout_s=self._timeout_s, version=version)

    def restore(self, process: EngineProcess, version: int) -> bool:
        """See `Transport.restore`."""
        if version >= 0:
            self.finish(process, version)
        return version >= 0

    def close(self) -> None:
        """Nothing is held."""
