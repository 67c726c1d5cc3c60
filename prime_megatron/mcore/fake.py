"""One rank of a layout as Megatron builds it, without its peers, its device and its weights.

torch's fake process group stands for the peers: a collective returns at once. Fake tensors stand for memory: they have
shapes, dtypes and storages of the right size, and nothing in them. So a rank of any size is built, learns and is
counted in seconds on a laptop, by the code that builds it on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import clip_grads
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.config.model import Layers
from prime_megatron.families import FamilyConfig
from prime_megatron.mcore.context import LocalTokens
from prime_megatron.mcore.fake_calls import Answers, balanced_routing
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.model import build_model, unwrap
from prime_megatron.mcore.optimizer import Optimizer
from prime_megatron.mcore.schedule import Consume, run_pipeline
from prime_megatron.parallel.topology import Topology

_TIMEOUT_S = 60.0


@contextmanager
def fake_rank(parallel: ParallelConfig, rank: int, world_size: int) -> Iterator[tuple[Topology, Answers]]:
    """Be this rank of a job of ``world_size`` processes, on a CPU; tensors made within are fake.

    Raises:
        InputError: sizes that do not divide.
    """
    assert not torch.cuda.is_available(), "fake ranks are built where no CUDA device is visible"
    assert not dist.is_initialized(), "this process is a rank already"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    with ExitStack() as stack:
        stack.callback(stop_megatron)
        topology = start_megatron(parallel, seed=1, backend="gloo", timeout_s=_TIMEOUT_S)
        answers = Answers()
        routed = balanced_routing(answers, MoEAlltoAllTokenDispatcher.preprocess)
        for owner, name, value in (
            # Every rank has optimizer groups of the same kinds, which is all that is gathered.
            (dist, "all_gather_object", _gather_own),
            # Nothing is drawn (transformer_config), and a generator's state cannot be compared.
            (CudaRNGStatesTracker, "fork", lambda self, name="": nullcontext()),
            (MoEAlltoAllTokenDispatcher, "preprocess", routed),
            # They read and write memory beside torch's dispatch.
            (clip_grads, "l2_norm_impl", lambda *args: (torch.ones(1), None)),
            (clip_grads, "multi_tensor_scale_impl", lambda *args: None),
        ):
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield topology, answers


class FakeRole:
    """A model on a fake rank, with its optimizer where it is trained: what ``role.Role`` builds, without weights.

    Arguments as of ``model.build_model``; ``topology`` from ``fake_rank``, within which this is made and used.
    """

    def __init__(
        self,
        family: FamilyConfig,
        topology: Topology,
        parallel: ParallelConfig,
        dtype: torch.dtype,
        *,
        trained: bool,
        value_head: bool,
    ) -> None:
        self.family, self.topology = family, topology
        self.chunks: list[Any] = build_model(
            family, topology, parallel, dtype, wrap_ddp=trained, value_head=value_head, layers=Layers.local
        )
        self.optimizer = Optimizer(self.chunks, OptimizerConfig(), parallel, dtype, 1) if trained else None

    def make_state(self) -> None:
        """Adam's moments, as they are before the first update of a run that loads them (Megatron's own maker)."""
        for part in self._parts():
            part.init_state_fn(part.optimizer, part.config)

    def num_parameters(self) -> int:
        """Elements of the parameters, padding of the vocabulary and of attention groups included."""
        return sum(param.numel() for chunk in self.chunks for param in chunk.parameters())

    def weights(self) -> int:
        """Bytes of the parameters' storages."""
        return _num_bytes(param.data for chunk in self.chunks for param in chunk.parameters())

    def gradients(self) -> int:
        """Bytes of the gradient buffers."""
        return _num_bytes(buffer.grad_data for chunk in self.chunks for buffer in _flat_buffers(chunk))

    def main_weights(self) -> int:
        """Bytes of the optimizer's weights that are no views of the model's."""
        own = {_storage(param.data) for chunk in self.chunks for param in chunk.parameters()}
        tensors = [p.data for part in self._parts() for group in part.optimizer.param_groups for p in group["params"]]
        return _num_bytes(tensor for tensor in tensors if _storage(tensor) not in own)

    def moments(self) -> int:
        """Bytes of the optimizer's state; step counts are numbers."""
        states = [state for part in self._parts() for state in part.optimizer.state.values()]
        return _num_bytes(value for state in states for value in state.values() if value.dim() > 0)

    def other_buffers(self) -> int:
        """Bytes of what modules register beside their parameters."""
        return _num_bytes(buffer for chunk in self.chunks for buffer in unwrap(chunk).buffers())

    def shapes(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Of every parameter, by (chunk, name)."""
        return {
            (index, name): tuple(param.shape)
            for index, chunk in enumerate(self.chunks)
            for name, param in unwrap(chunk).named_parameters()
        }

    def update(self, micro_batches: Sequence[LocalTokens], consume: Consume, answers: Answers) -> None:
        """One update as ``role.Role.learn`` makes it: forwards, backwards, gradients reduced, an optimizer step.

        All micro-batches have equally many tokens, so that what a stage receives has a shape known before.
        """
        assert self.optimizer is not None
        config = unwrap(self.chunks[0]).config
        tokens = micro_batches[0].tokens_1T.shape[1] // (
            config.tensor_model_parallel_size if config.sequence_parallel else 1
        )
        shape = [tokens, 1, config.hidden_size]
        ask = P2PCommunicator._communicate_shapes

        def told(communicator: P2PCommunicator, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
            ask(communicator, *args, **kwargs)
            return shape, shape

        with _replaced(P2PCommunicator, "_communicate_shapes", told), answers:
            for chunk in self.chunks:
                chunk.train()
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            run_pipeline(self.chunks, micro_batches, consume, train=True)
            assert self.optimizer.step(True).applied

    def _parts(self) -> list[Any]:
        if self.optimizer is None:
            return []
        return [part for part in self.optimizer.megatron.chained_optimizers if not part.is_stub_optimizer]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _gather_own(gathered: list[Any], value: Any, group: Any = None) -> None:
    gathered[:] = [value] * len(gathered)


def _flat_buffers(chunk: Any) -> list[Any]:
    """Megatron's flat buffers of a DDP-wrapped chunk, experts' included; none of a bare one."""
    return [*chunk.buffers, *chunk.expert_parallel_buffers] if hasattr(chunk, "expert_parallel_buffers") else []


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the tensors' storages, each once."""
    return sum({_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
