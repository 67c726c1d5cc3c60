"""The place where CPU and GPU differ: which device this process drives; how to wait for, time and weigh it."""

import ctypes
import os
from typing import Literal

import torch


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


def host_memory_bytes() -> int:
    """Resident host memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes() -> int:
    """Highest `memory_allocated_bytes` since `reset_peak_memory`; 0 on CPU."""
    return torch.cuda.max_memory_allocated() if on_gpu() else 0


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
