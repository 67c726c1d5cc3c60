"""The embedded engine against transformers, and the sampling streams against probability theory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from prime_megatron.errors import InputError
from prime_megatron.rollout.embedded.dense import DenseDecoder
from prime_megatron.rollout.embedded.engine import EmbeddedEngine
from prime_megatron.rollout.engine import Completion, Engine, Request, Sampling
from prime_megatron.rollout.sampling import EVAL, SampleKey, draw, inverse_cdf, nucleus, uniforms
from prime_megatron.types import Bucket

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = 6
"""Less than most prompts with their answers have."""
MODELS = ["qwen2-tied", "llama-untied", "granite", "qwen3-moe", "mixtral", "mistral-window", "qwen2-half-window",
          "llama-biases-yarn"]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    torch.manual_seed(3)
    if request.param == "qwen2-tied":
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SIZES))
    elif request.param == "granite":  # no decode step of our own: transformers' forward, with scales of its own
        scales = {"attention_multiplier": 0.6, "residual_multiplier": 0.7, "logits_scaling": 0.5}
        model = GraniteForCausalLM(GraniteConfig(tie_word_embeddings=True, **scales, **SIZES))
        assert not DenseDecoder.supports(model)
    elif request.param == "qwen3-moe":
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(moe_intermediate_size=24, head_dim=16, **EXPERTS, **SIZES))
        assert not DenseDecoder.supports(model)
    elif request.param == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(sliding_window=WINDOW, **EXPERTS, **SIZES))
    elif request.param == "mistral-window":
        model = MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **SIZES))
    elif request.param == "qwen2-half-window":  # the second layer alone
        window = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
        model = Qwen2ForCausalLM(Qwen2Config(**window, **SIZES))
        assert model.config.layer_types == ["full_attention", "sliding_attention"]
    elif request.param == "llama-biases-yarn":
        yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
        config = LlamaConfig(attention_bias=True, mlp_bias=True, rope_parameters=yarn, **SIZES)
        model = LlamaForCausalLM(config)
        assert DenseDecoder.supports(model)
    else:
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # random biases and norms, and peaked predictions
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    folder = str(tmp_path_factory.mktemp(request.param))
    model.save_pretrained(folder)
    model.name_or_path = folder
    return model.eval()


def load(model: PreTrainedModel, end: tuple[int, ...] = (1,), max_concurrent: int = 64) -> EmbeddedEngine:
    engine = EmbeddedEngine(
        model.name_or_path, end_token_ids=end, device=torch.device("cpu"), dtype=torch.float32,
        max_concurrent=max_concurrent,
    )  # fmt: skip
    names, tensors = zip(*model.named_parameters(), strict=True)
    engine.update_weights([Bucket(names[:3], tensors[:3], 7), Bucket(names[3:], tensors[3:], 7)], version=7)
    return engine


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, VOCAB, size=rng.integers(1, 12)).tolist()) for _ in range(count)]


def ask(count: int, samples: int, settings: Sampling, seed: int = 0) -> list[Request]:
    return [
        Request(prompt, SampleKey(seed, 2, place, sample), settings)
        for place, prompt in enumerate(prompts(count)) for sample in range(samples)
    ]  # fmt: skip


def reference_logprobs(model: PreTrainedModel, done: Completion, temperature: float) -> torch.Tensor:
    """transformers' own forward over the whole unpadded sequence."""
    ids = torch.tensor([done.request.prompt_ids + done.token_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(done.request.prompt_ids) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_concurrent", [64, 5])
def test_logprobs_equal_transformers(model: PreTrainedModel, temperature: float, max_concurrent: int) -> None:
    engine = load(model, max_concurrent=max_concurrent)
    requests = ask(9, 4, Sampling(max_tokens=20, temperature=temperature))
    heard: list[Completion] = []
    done = engine.generate(requests, heard.append)
    assert [one.request for one in done] == requests
    assert sorted(map(id, heard)) == sorted(map(id, done))
    for one in done:
        expected = reference_logprobs(model, one, temperature)[range(len(one.token_ids)), list(one.token_ids)]
        assert torch.allclose(torch.tensor(one.logprobs).double(), expected, atol=1e-5, rtol=0)


def test_tokens_follow_the_stream(model: PreTrainedModel) -> None:
    """Each token is the inverse CDF, in numpy, of its stream's number under transformers' distribution."""
    for one in load(model).generate(ask(6, 2, Sampling(max_tokens=15))):
        probs = reference_logprobs(model, one, 1.0).exp().numpy()
        numbers = uniforms(one.request.key, len(one.token_ids))
        for p, u, token in zip(probs, numbers, one.token_ids, strict=True):
            cdf = np.cumsum(p)
            assert cdf[token] - p[token] - 1e-5 <= u * cdf[-1] <= cdf[token] + 1e-5


def test_batch_does_not_change_a_sample(model: PreTrainedModel) -> None:
    requests = ask(7, 3, Sampling(max_tokens=18))
    together = load(model).generate(requests)
    shuffled = [requests[i] for i in np.random.default_rng(1).permutation(len(requests))]
    split = {id(r): c for r, c in zip(shuffled, load(model, max_concurrent=4).generate(shuffled), strict=True)}
    alone = [load(model).generate([request])[0] for request in requests[:6]]
    assert [one.token_ids for one in together] == [split[id(request)].token_ids for request in requests]
    assert [one.token_ids for one in together[:6]] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in together}) > len(requests) // 2


def test_greedy_equals_transformers(model: PreTrainedModel) -> None:
    engine = load(model, max_concurrent=3)
    for one in engine.generate(ask(8, 1, Sampling(max_tokens=20, greedy=True))):
        ids = torch.tensor([one.request.prompt_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        assert out[0, ids.shape[1] :].tolist() == list(one.token_ids)


def test_end_and_length(model: PreTrainedModel) -> None:
    settings = [Sampling(max_tokens=4 + place) for place in range(12)]
    requests = [Request(prompt, SampleKey(0, 0, place, 0), settings[place]) for place, prompt in enumerate(prompts(12))]
    free = load(model, end=()).generate(requests)
    assert [len(one.token_ids) for one in free] == [s.max_tokens for s in settings]
    assert {one.finish for one in free} == {"length"}
    end = {one.token_ids[len(one.token_ids) // 2] for one in free[::3]}
    ended = load(model, end=tuple(end), max_concurrent=5).generate(requests)
    for one, whole in zip(ended, free, strict=True):
        first = next((t for t, token in enumerate(whole.token_ids) if token in end), None)
        kept = whole.token_ids if first is None else whole.token_ids[: first + 1]
        assert (one.token_ids, one.finish) == (kept, "length" if first is None else "stop")
    assert {one.finish for one in ended} == {"length", "stop"}


def test_nucleus_logprobs_and_mixed_settings(model: PreTrainedModel) -> None:
    requests = [
        Request(
            prompt, SampleKey(0, 0, place, 0), Sampling(12, temperature=0.5 + place % 3, top_p=top_p, greedy=greedy)
        )
        for place, prompt in enumerate(prompts(12))
        for top_p, greedy in [((0.4, False), (1.0, False), (0.4, True))[place % 3]]
    ]
    for one in load(model).generate(requests):
        sampling = one.request.sampling
        for t, row in enumerate(reference_logprobs(model, one, sampling.temperature).numpy()):
            token = one.token_ids[t]
            p = np.exp(row)
            if sampling.greedy:
                assert token == row.argmax()
                expected = row[token]
            else:
                order = np.argsort(-p)
                size = int(np.searchsorted(np.cumsum(p[order]), sampling.top_p) + 1)
                kept = order[:size] if sampling.top_p < 1 else order
                assert token in kept
                expected = math.log(p[token] / p[kept].sum())
            assert one.logprobs[t] == pytest.approx(expected, abs=1e-5)


def test_weights_in_place_and_sleep(model: PreTrainedModel) -> None:
    engine = load(model)
    assert isinstance(engine, Engine) and engine.version == 7
    request = ask(1, 1, Sampling(max_tokens=20))
    before = engine.generate(request)[0]
    targets = engine.named_targets()
    assert set(targets) == {name for name, _ in model.named_parameters()}
    engine.sleep(2)
    assert engine.version == -1
    assert all(target.untyped_storage().nbytes() == 0 for target in targets.values())
    engine.wake({"weights"})
    for name, parameter in model.named_parameters():
        targets[name].copy_(parameter.detach())
    engine.update_weights((), 8)
    engine.wake({"kv_cache"})
    assert engine.generate(request)[0] == before and engine.version == 8
    targets["model.norm.weight"].mul_(1.5)  # a live tensor: the engine's next answer must see it
    assert engine.generate(request)[0].logprobs != before.logprobs
    with pytest.raises(InputError, match="nonsense"):
        engine.update_weights([Bucket(["nonsense"], [torch.zeros(1)], 9)], 9)
    engine.close()
    engine.close()


def test_refuses(model: PreTrainedModel, tmp_path) -> None:
    engine = load(model)
    with pytest.raises(InputError, match="max_position_embeddings"):
        engine.generate(ask(3, 1, Sampling(max_tokens=64)))
    assert engine.generate([]) == []
    with pytest.raises(InputError, match="config"):
        EmbeddedEngine(
            str(tmp_path), end_token_ids=(), device=torch.device("cpu"), dtype=torch.float32, max_concurrent=1
        )


def test_uniform_streams() -> None:
    key = SampleKey(seed=1, step=2, draw=3, sample=4)
    assert np.array_equal(uniforms(key, 5), uniforms(key, 50)[:5])
    streams = [
        key, SampleKey(0, 2, 3, 4), SampleKey(1, 0, 3, 4), SampleKey(1, 2, 0, 4), SampleKey(1, 2, 3, 0),
        SampleKey(1, 2, 3, 4, EVAL), SampleKey(1, 2, 4, 4), SampleKey(2, 1, 4, 3),
    ]  # fmt: skip
    numbers = np.concatenate([uniforms(stream, 400) for stream in streams])
    assert len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, bins=16, range=(0, 1))[0]
    expected = numbers.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-square, 15 degrees, p = 0.001


def test_sampling_distribution() -> None:
    """Chi-square of drawn tokens on a tiny vocabulary, with and without nucleus."""
    logits = torch.tensor([1.0, -2.0, 0.3, 0.0, 2.0, -torch.inf])
    rows = 20000
    uniform = torch.from_numpy(uniforms(SampleKey(0, 0, 0, 0), rows))
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.5, 0.7)):
        p = np.exp(logits.double().numpy() / temperature)
        p /= p.sum()
        order = np.argsort(-p)
        kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1] if top_p < 1 else order
        expected = np.zeros(6)
        expected[kept] = rows * p[kept] / p[kept].sum()
        full = torch.full((rows,), 1.0)
        tokens, _ = draw(logits.expand(rows, -1), full * temperature, full * top_p, None, uniform)
        counts = np.bincount(tokens.numpy(), minlength=6)
        assert counts[expected == 0].sum() == 0
        possible = expected > 0
        statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        assert statistic < 20.5  # p = 0.001 at 5 degrees


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-40, 5), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True), st.floats(0.01, 1))
def test_never_a_token_outside_the_support(logits: list[float], uniform: float, top_p: float) -> None:
    logprobs = torch.tensor([[-torch.inf, *logits, -torch.inf]]).log_softmax(-1)
    cut = nucleus(logprobs, torch.tensor([top_p]))
    for distribution in (logprobs, cut):
        token = inverse_cdf(distribution, torch.tensor([uniform], dtype=torch.float64))
        assert distribution[0, token].isfinite().all()
    assert cut[0].logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)
    last = inverse_cdf(logprobs, torch.tensor([1.0 - 2.0**-53], dtype=torch.float64))
    assert logprobs[0, last].isfinite().all()


def test_other_kinds_of_layers_are_refused(tmp_path: Path) -> None:
    """Before anything is loaded."""
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 2}
    config["layer_types"] = ["full_attention", "chunked_attention"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="chunked_attention"):
        EmbeddedEngine(
            str(tmp_path), end_token_ids=[1], device=torch.device("cpu"), dtype=torch.float32, max_concurrent=1
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_of_no_numbers_draws_a_token_without_a_log_prob(value: float) -> None:
    """Beside it, the other rows draw as ever."""
    logits = torch.randn(3, 7)
    whole = logits.clone()
    logits[1] = value
    uniform = torch.tensor([0.1, 0.999999, 0.5], dtype=torch.float64)
    for top_p in (None, torch.tensor([1.0, 0.5, 0.9])):
        for greedy in (None, torch.tensor([False, True, False])):
            token, logprob = draw(logits, torch.ones(3), top_p, greedy, uniform)
            expected = draw(whole, torch.ones(3), top_p, greedy, uniform)
            assert 0 <= int(token[1]) < 7 and not torch.isfinite(logprob[1])
            assert torch.equal(token[[0, 2]], expected[0][[0, 2]])
            assert torch.equal(logprob[[0, 2]], expected[1][[0, 2]])
