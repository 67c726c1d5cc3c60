"""A driver without a model: it answers with its prompt and the sum of its one weight, and dies or hangs on demand.

The first prompt token says what happens to a request: DIE and HANG happen once per file named in the settings.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from prime_megatron.errors import InputError
from prime_megatron.rollout.engine import Request
from prime_megatron.rollout.process.driver import BroadcastGroup, DriverSettings, FinishedResponse, UpdateRefused
from prime_megatron.weights.broadcast import make_group, receive_tensors
from prime_megatron.weights.buffer import TensorRow, open_buffer, unpack
from prime_megatron.weights.segment import attach, bit_sums

DIE, HANG, FAIL = 101, 102, 103


class EchoDriver:
    def __init__(self, settings: DriverSettings) -> None:
        self.model = nn.Linear(3, 2, bias=False)
        self.once = Path(str(settings.extra["once"]))
        self.broken = bool(settings.extra["broken"])
        if "misread" in settings.extra:
            raise InputError(f"{settings.model_path}/config.json: x is 1 for the trainer, 2 for the engine")
        if settings.extra["dead"]:
            os._exit(3)

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        for index in reversed(range(len(requests))):
            ids = requests[index].prompt_ids
            if ids[0] in (DIE, HANG, FAIL) and not self.once.exists():
                self.once.write_text("")
                if ids[0] == DIE:
                    os.kill(os.getpid(), signal.SIGKILL)
                if ids[0] == FAIL:
                    raise ValueError("told to fail")
                time.sleep(600)
            total = float(self.model.weight.sum())
            finished(FinishedResponse(index, ids, [total] * len(ids), "stop"))
            alive()

    def attach(self, paths: Sequence[str]) -> None:
        attach(self.model, paths[0])

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        time.sleep(0.1)  # the trainer fills the other buffer meanwhile, and must leave this one alone
        flat = open_buffer(handles[0])
        self.model.load_state_dict(dict(unpack(flat, rows)))
        print(f"bucket of {float(self.model.weight.sum())}", flush=True)

    def load_folder(self, path: str) -> None:
        if (Path(path) / "refuse").exists():
            raise UpdateRefused("the echo refused it")
        for file in Path(path).glob("*.safetensors"):
            self.model.load_state_dict(load_file(file))

    def join(self, group: BroadcastGroup) -> None:
        self.group = make_group(group.address, group.port, group.name, rank=1, world_size=2)

    def receive(self, rows: Sequence[TensorRow]) -> None:
        self.model.load_state_dict(dict(receive_tensors(self.group, rows, torch.device("cpu"))))

    def commit(self, version: int) -> None: ...

    def bit_sums(self) -> list[dict[str, int]]:
        if self.broken:
            with torch.no_grad():
                self.model.weight = nn.Parameter(self.model.weight + 1)
        return [bit_sums(self.model.named_parameters())]

    def sleep(self, level: int) -> None: ...

    def wake(self, tags: Collection[str]) -> None: ...

    def close(self) -> None: ...
