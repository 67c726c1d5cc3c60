"""The vocabulary head against its GEMMs and against every peer that is installed.

figures: fwd_x_gemm_*: scoring with entropy over one product [T, H] x [H, V] of the same dtype into a preallocated
result; fwdbwd_x_3gemm_*: the PPO loss with entropy, forward and backward, over the three products that it needs;
fwd_extra_mb: memory above inputs during scoring (the larger of the dtypes). All sides of a ratio run in every round;
ratios are medians over rounds, in CPU seconds of one thread on CPU, device events on CUDA. The default CPU run takes
about two minutes on a quiet core.
On CUDA each run starts after a pause, at full clock, as rates such as 790 TFLOP/s are measured; `*_sustained_ms_*`
are without pauses, where an H200 sits at its power limit, GEMMs included.

peers: the same ratios for what others offer and for our other forms (`ours_autograd` returns the weight's gradient,
`ours_recompute` takes any loss with four products), at --peer-tokens tokens, with ours in the same rounds;
fwd_x_ours and fwdbwd_x_ours above 1 mean that ours, with entropy and PPO, is faster. Peers without entropy say so in
their name; *_x_ours_no_entropy sets them against ours doing the same work, the negative log-likelihood alone.
liger-kernel is Triton only, which needs a GPU: it is compared with --device cuda and has no figure on CPU.
torch.compile and cut-cross-entropy's CPU form need a C++ compiler.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from prime_megatron.algo.losses import NllLoss, PolicyLoss
from prime_megatron.kernels.logprob import fused_logprob_loss, token_logprobs
from prime_megatron.kernels.logprob_naive import naive_logprobs
from tools.benches import common

# Scoring (None where it is another side's), and loss forward and backward.
Sides = tuple[Callable[[], Any] | None, Callable[[], Any]]
PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, help="default 2048 on CPU, 16384 on CUDA")
    parser.add_argument("--hidden", type=int, help="default 896 on CPU, 3584 on CUDA")
    parser.add_argument("--vocab", type=int, help="default 32000 on CPU, 152064 on CUDA")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), help="default both on CPU, bf16 on CUDA")
    parser.add_argument("--rounds", type=int, help="default 5; on CPU 3 in fp32")
    parser.add_argument("--peer-tokens", type=int, help="default 512 on CPU, all tokens on CUDA")
    parser.add_argument("--peer-rounds", type=int, default=3)
    parser.add_argument("--pause-s", type=float, default=0.3, help="idle time before each run on CUDA")
    parser.add_argument("--impl", default="auto")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    where = common.use_device(arguments.device)
    gpu = where.type == "cuda"
    sizes = (
        arguments.tokens or (16384 if gpu else 2048),
        arguments.hidden or (3584 if gpu else 896),
        arguments.vocab or (152064 if gpu else 32000),
    )
    peer_tokens = arguments.peer_tokens or (sizes[0] if gpu else min(512, sizes[0]))
    figures: dict[str, Any] = {"tokens": sizes[0], "hidden": sizes[1], "vocab": sizes[2], "peer_tokens": peer_tokens}
    peers: dict[str, Any] = {}
    for dtype in arguments.dtypes or (("bf16",) if gpu else ("fp32", "bf16")):
        kind = torch.float32 if dtype == "fp32" else torch.bfloat16
        rounds = arguments.rounds or (3 if dtype == "fp32" and not gpu else 5)
        ours = _ours(Problem(sizes, kind, where, arguments.impl), arguments, dtype, rounds)
        extra = ours.pop("fwd_extra_mb")
        figures["fwd_extra_mb"] = max(extra, figures.get("fwd_extra_mb", 0.0))
        figures.update(ours)
        if arguments.peers:
            problem = Problem((peer_tokens, *sizes[1:]), kind, where, arguments.impl)
            peers.update(_compared(problem, arguments, dtype))
    return common.line("logprob", where, figures, peers, PACKAGES)


class Problem:
    """Inputs of one dtype, and the sides that are timed on them."""

    def __init__(self, sizes: tuple[int, int, int], dtype: torch.dtype, where: torch.device, impl: str) -> None:
        tokens, width, vocab = sizes
        draw = torch.Generator(device=where).manual_seed(0)
        self.where, self.impl = where, impl
        self.hidden = torch.randn(tokens, width, generator=draw, device=where).to(dtype).requires_grad_()
        weight = torch.randn(vocab, width, generator=draw, device=where) * (4.0 / width**0.5)
        self.weight = weight.to(dtype).requires_grad_()
        self.labels = torch.randint(vocab, (tokens,), generator=draw, device=where)
        self.main_grad = torch.zeros(vocab, width, device=where)
        with torch.no_grad():
            old = self.forward()
        noise = torch.randn(3, tokens, generator=draw, device=where)
        self.loss = PolicyLoss(
            advantages_T=noise[0], weights_T=torch.full((tokens,), 1.0 / tokens, device=where),
            old_logprobs_T=old + 0.1 * noise[1], entropy_coef=0.01, kl_coef=0.01, ref_logprobs_T=old + 0.1 * noise[2],
        )  # fmt: skip

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return token_logprobs(self.hidden, self.weight, self.labels, impl=self.impl).logprobs_T

    def fused(self) -> None:
        """As under Megatron's DDP: the weight's gradient goes into an fp32 main_grad."""
        self.weight.main_grad = self.main_grad
        self.weight.grad_added_to_main_grad = False
        result = fused_logprob_loss(self.hidden, self.weight, self.labels, self.loss, grad_scale=1.0, impl=self.impl)
        result.loss.backward()
        del self.weight.main_grad, self.weight.grad_added_to_main_grad
        self.clear()

    def autograd(self) -> None:
        """The same loss, the weight's gradient returned through autograd."""
        fused_logprob_loss(self.hidden, self.weight, self.labels, self.loss, impl=self.impl).loss.backward()
        self.clear()

    def recompute(self) -> None:
        """The form for arbitrary losses: four products."""
        head = token_logprobs(self.hidden, self.weight, self.labels, impl=self.impl)
        self.loss.plain(head.logprobs_T, head.entropy_T).backward()
        self.clear()

    def forward_no_entropy(self) -> None:
        with torch.no_grad():
            token_logprobs(self.hidden, self.weight, self.labels, entropy=False, impl=self.impl)

    def fused_no_entropy(self) -> None:
        loss = NllLoss(torch.ones_like(self.labels, dtype=torch.float32))
        fused_logprob_loss(self.hidden, self.weight, self.labels, loss, impl=self.impl).loss.backward()
        self.clear()

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def products(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """One and three GEMMs into preallocated results."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=self.where)
        dhidden, dweight = torch.empty_like(hidden), torch.empty_like(weight)

        def one() -> None:
            torch.mm(hidden, weight.t(), out=logits)

        def three() -> None:
            torch.mm(hidden, weight.t(), out=logits)
            torch.mm(logits, weight, out=dhidden)
            torch.mm(logits.t(), hidden, out=dweight)

        return one, three


def _ours(problem: Problem, arguments: argparse.Namespace, dtype: str, rounds: int) -> dict[str, Any]:
    where, extra = problem.where, common.extra_mb(problem.forward, problem.where)
    one, three = problem.products()
    sides = {"gemm": one, "fwd": problem.forward, "gemm3": three, "fused": problem.fused}
    gpu = where.type == "cuda"
    seconds = common.interleaved(
        sides, rounds, where, arguments.pause_s if gpu else 0.0, warm_up=gpu, label=f"ours, {dtype}"
    )
    figures: dict[str, Any] = {
        f"fwd_x_gemm_{dtype}": common.ratio(seconds, "fwd", "gemm"),
        f"fwdbwd_x_3gemm_{dtype}": common.ratio(seconds, "fused", "gemm3"),
        "fwd_extra_mb": extra,
    }
    figures |= {f"{side}_ms_{dtype}": common.median_ms(seconds[side]) for side in sides}
    if gpu:
        hot = common.interleaved(sides, 2 * rounds, where, label=f"ours, {dtype}, sustained")
        figures |= {f"{side}_sustained_ms_{dtype}": common.median_ms(hot[side]) for side in sides}
    return figures


def _compared(problem: Problem, arguments: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Every peer beside ours in the same rounds."""
    one, three = problem.products()
    peers: dict[str, Sides] = {
        "ours": (problem.forward, problem.fused),
        "ours_no_entropy": (problem.forward_no_entropy, problem.fused_no_entropy),
        "ours_autograd": (None, problem.autograd),
        "ours_recompute": (None, problem.recompute),
    } | _peers(problem, dtype)
    sides = {"gemm": one, "gemm3": three}
    for name, (forward, both) in peers.items():
        sides |= {f"{name}/fwdbwd": both} | ({f"{name}/fwd": forward} if forward else {})
    pause_s = arguments.pause_s if problem.where.type == "cuda" else 0.0
    seconds = common.interleaved(
        sides, arguments.peer_rounds, problem.where, pause_s, warm_up=False, label=f"peers, {dtype}"
    )
    return {f"{name}_{dtype}": _ratios(seconds, name) for name in peers}


def _ratios(seconds: dict[str, list[float]], name: str) -> dict[str, float]:
    """A peer over the products, and over ours where it is somebody else's."""
    found = {}
    for way, base in (("fwd", "gemm"), ("fwdbwd", "gemm3")):
        side = f"{name}/{way}"
        if side not in seconds:
            continue
        found[f"{way}_x_{'' if way == 'fwd' else '3'}gemm"] = common.ratio(seconds, side, base)
        if not name.startswith("ours"):
            found[f"{way}_x_ours"] = common.ratio(seconds, side, f"ours/{way}")
        if name.endswith("_no_entropy") and name != "ours_no_entropy":
            found[f"{way}_x_ours_no_entropy"] = common.ratio(seconds, side, f"ours_no_entropy/{way}")
    return found


def _peers(problem: Problem, dtype: str) -> dict[str, Sides]:
    """(scoring, loss forward and backward) of every peer that is installed and runs on this device."""
    found = {}
    candidates = {
        "naive": lambda: _with_entropy(problem, naive_logprobs),
        "torch_compile_naive": lambda: _with_entropy(problem, torch.compile(naive_logprobs, dynamic=False)),
        "torch_linear_cross_entropy_no_entropy": lambda: _torch_linear_cross_entropy(problem),
        "liger_flce_no_entropy": lambda: _liger(problem),
        "cut_cross_entropy_no_entropy": lambda: _cut_cross_entropy(problem),
    }
    if problem.where.type == "cpu":
        del candidates["liger_flce_no_entropy"]
    for name, build in candidates.items():
        print(f"bench: peers, {dtype}: preparing {name}", file=sys.stderr, flush=True)
        try:
            forward, both = build()
            forward()
            both()
            found[name] = (forward, both)
        except (ImportError, AttributeError):
            continue  # not installed here
        except Exception as error:  # a peer that cannot run on this device is left out, whatever it raises
            print(f"bench: {name} left out: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        finally:
            problem.clear()
    return found


def _with_entropy(problem: Problem, head: Callable[..., Any]) -> Sides:
    def forward() -> None:
        with torch.no_grad():
            head(problem.hidden, problem.weight, problem.labels, 1.0)

    def both() -> None:
        problem.loss.plain(*head(problem.hidden, problem.weight, problem.labels, 1.0)).backward()
        problem.clear()

    return forward, both


def _negative_log_likelihood(problem: Problem, nll: Callable[[], torch.Tensor]) -> Sides:
    def forward() -> None:
        with torch.no_grad():
            nll()

    def both() -> None:
        nll().sum().backward()
        problem.clear()

    return forward, both


def _torch_linear_cross_entropy(problem: Problem) -> Sides:
    return _negative_log_likelihood(
        problem, lambda: F.linear_cross_entropy(problem.hidden, problem.weight, problem.labels, reduction="sum")
    )


def _liger(problem: Problem) -> Sides:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return _negative_log_likelihood(problem, lambda: loss(problem.weight, problem.hidden, problem.labels))


def _cut_cross_entropy(problem: Problem) -> Sides:
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if problem.where.type == "cuda" else "torch_compile"
    return _negative_log_likelihood(
        problem,
        lambda: linear_cross_entropy(problem.hidden, problem.weight, problem.labels, reduction="none", impl=impl),
    )
