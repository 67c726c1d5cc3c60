"""The place where CPU and GPU differ: which device this process drives; how to wait for, time and weigh it; copies
beside the computation."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, SupportsInt

import torch
from torch import Tensor

from prime_megatron.errors import RunError


def on_gpu() -> bool:
    """True when this process drives a CUDA device."""
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """The device this rank computes on: its current CUDA device, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def backend_name() -> Literal["gloo", "nccl"]:
    """torch.distributed backend for tensors on `current_device()`."""
    return "nccl" if on_gpu() else "gloo"


def bind_local_rank() -> torch.device:
    """Bind this process to the GPU of its LOCAL_RANK (torchrun and srun set it; 0 without); a no-op on CPU."""
    if on_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return current_device()


def synchronize() -> None:
    """Wait for the work queued on the current device."""
    if on_gpu():
        torch.cuda.synchronize()


def empty_cache() -> None:
    """Give unused cached device memory back to the driver, so that another process or allocator may have it."""
    if on_gpu():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """On a CPU under glibc: free pages of the heap go back to the system; models that come and go leave ever more."""
    malloc_trim = None if on_gpu() else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def keep_freed_memory() -> None:
    """On a CPU under glibc: freed memory stays with the process (up to 512 MiB at the end of the heap) for the
    next tensors. By default every tensor of some size is mapped anew or the heap trimmed, and an update of a small
    model spends a tenth of its time on page faults. Tensors above 32 MiB are still mapped and given back."""
    if on_gpu():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 512 * 2**20)
        mallopt(mmap_threshold, 32 * 2**20)


def memory_allocated_bytes() -> int:
    """Device memory held by live tensors; 0 on CPU, whose allocator keeps no such count."""
    return torch.cuda.memory_allocated() if on_gpu() else 0


def memory_used_bytes() -> int:
    """Memory in use on this rank's device by all processes together; 0 on CPU."""
    if not on_gpu():
        return 0
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return total_bytes - free_bytes


def memory_free_share() -> float:
    """What no process uses of this rank's device, over the whole; 1 on CPU."""
    if not on_gpu():
        return 1.0
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return free_bytes / total_bytes


def host_memory_bytes() -> int:
    """Resident host memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def host_memory_available_bytes() -> int:
    """Host memory that may still be taken here: of the machine, and of the control groups above this process."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_group_rooms()])


def _group_rooms() -> list[int]:
    """What every limited control group (version 2) above this process leaves beyond the memory that cannot be given
    back."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        path = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
    rooms = []
    folder = Path("/sys/fs/cgroup") / path.strip("/")
    while folder.is_relative_to("/sys/fs/cgroup"):
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            held = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            if limit != "max":
                rooms.append(max(0, int(limit) - int(held["anon"]) - int(held["shmem"])))
        except OSError:
            pass  # the root has no limit, another version no such file
        folder = folder.parent
    return rooms


def pin(memory: Tensor) -> None:
    """Lock host memory, uint8 and contiguous, in place for copies that the GPU makes by itself; a no-op on CPU.

    Unlike torch's pinned allocator it takes the bytes as they are: that one rounds to powers of two and keeps what is
    freed. `unpin` must come before the memory goes.

    Raises:
        RunError: CUDA cannot lock it.
    """
    if on_gpu():
        portable = 1  # cudaHostRegisterPortable
        _succeed("cudaHostRegister", torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), portable))


def unpin(memory: Tensor) -> None:
    """Inverse of `pin`."""
    if on_gpu():
        _succeed("cudaHostUnregister", torch.cuda.cudart().cudaHostUnregister(memory.data_ptr()))


def _succeed(call: str, answer: SupportsInt) -> None:
    if int(answer):
        raise RunError(f"{call} failed with CUDA's error {int(answer)}: host memory cannot be locked; see ulimit -l")


class Mark:
    """A place in a `CopyQueue`: the copies before it."""

    def __init__(self, stream: "torch.cuda.Stream | None") -> None:
        self._event = None if stream is None else stream.record_event()

    def before_compute(self) -> None:
        """What the computation queues from here on waits for those copies; the host does not."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)

    def wait(self) -> None:
        """The host waits for them."""
        if self._event is not None:
            self._event.synchronize()


class CopyQueue:
    """Copies in an order of their own beside the computation: a CUDA stream on a GPU, the program's order on a CPU."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream() if on_gpu() else None

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        """Copies of the block are queued here, behind all that the computation has queued so far.

        Memory for them is to be taken before the block: it then belongs to the computation's stream.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def after(self, mark: Mark) -> None:
        """Later copies here wait for another queue's."""
        if self._stream is not None and mark._event is not None:
            self._stream.wait_event(mark._event)

    def mark(self) -> Mark:
        """The copies that are queued so far."""
        return Mark(self._stream)

    def holds(self, tensor: Tensor) -> None:
        """The tensor's memory, freed after this, goes to nobody before the copies that are queued now are done."""
        if self._stream is not None:
            tensor.record_stream(self._stream)


def peak_memory_bytes() -> int:
    """Highest `memory_allocated_bytes` since `reset_peak_memory`; 0 on CPU."""
    return torch.cuda.max_memory_allocated() if on_gpu() else 0


def record_memory(on: bool) -> None:
    """Begin or end a history of the device's allocations, with the stacks that made them; nothing on CPU."""
    if on_gpu():
        torch.cuda.memory._record_memory_history(enabled="all" if on else None, max_entries=200_000)


def dump_memory(path: Path) -> None:
    """Write the history (pickle, for pytorch.org/memory_viz); nothing on CPU. Raises OSError."""
    if on_gpu():
        torch.cuda.memory._dump_snapshot(str(path))


def reset_peak_memory() -> None:
    """Start a new peak-memory window."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()


def has_triton() -> bool:
    """True when Triton kernels can run on this process's tensors: a GPU, or the interpreter on CPU.

    Triton reads TRITON_INTERPRET when a kernel is defined, so it must be set before kernels are imported.
    """
    if not on_gpu() and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
