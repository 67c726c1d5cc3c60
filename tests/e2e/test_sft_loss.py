"""Supervised steps against transformers and torch: the same rows, masks and updates, in every layout and packing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks
from tests.support.runs import read_lines
from tests.support.toy import make_model, make_tokenizer

LR, STEPS = 1e-3, 3
CHATS = [
    [("user", "1+2?"), ("assistant", "\\boxed{3}"), ("user", "and 4 more?"), ("assistant", "\\boxed{7} is it")],
    [("user", "what is 5+5?"), ("assistant", "ten"), ("user", "in digits?"), ("assistant", "10"), ("user", "why?"),
     ("assistant", "for five and five is ten")],
    [("user", "7+1?"), ("assistant", "\\boxed{8}")],
    [("user", "2+2?"), ("assistant", "4"), ("user", "sure?"), ("assistant", "yes")],
]  # fmt: skip
WEIGHTED = {3: (1, 0)}
"""Chat -> weights of its answers: the second one is not learned."""
HELD_OUT = [[("user", "3+3?"), ("assistant", "\\boxed{6}"), ("user", "and one?"), ("assistant", "seven")]]
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one": (1, {}, {}),
    "one a micro-batch": (1, {}, {"max_sequences": 1}),
    "padded": (1, {}, {"padded": True}),
    "tp2": (2, {"tensor": 2, "sequence": True}, {"max_tokens": 64}),
    "pp2": (2, {"pipeline": 2}, {"max_tokens": 64}),
    "cp2": (2, {"context": 2}, {}),
    "dp2": (2, {}, {"max_tokens": 64}),
    "ep2": (2, {"expert": 2}, {"max_tokens": 64}),
}
"""Processes, layout, packing."""


def write(path: Path, chats: list[list[tuple[str, str]]]) -> str:
    """The chats as rows."""
    with path.open("w") as file:
        for number, chat in enumerate(chats):
            messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in chat]
            answers = [message for message in messages if message["role"] == "assistant"]
            for message, weight in zip(answers, WEIGHTED.get(number, ()), strict=False):
                message["weight"] = weight
            file.write(json.dumps({"messages": messages}) + "\n")
    return str(path)


def labelled(chat: list[tuple[str, str]], learned: tuple[bool, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole chat as one sequence, and transformers' labels: the learned answers with their ends, -100 elsewhere."""
    tokenizer, ids, labels, answer = make_tokenizer(), [], [], 0
    for role, text in chat:
        opening = "<user>" if role == "user" else "<bot>"
        body = text if role == "user" else text + "<eos>"
        for piece, taught in ((opening, False), (body, role == "assistant" and learned[answer])):
            own = tokenizer.encode(piece, add_special_tokens=False)
            ids += own
            labels += own if taught else [-100] * len(own)
        answer += role == "assistant"
    return torch.tensor([ids]), torch.tensor([labels])


def nll(model: Any, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Mean over all learned tokens of all rows: transformers' own loss, each row's times its count."""
    counts = [(labels != -100).sum() for _, labels in rows]
    losses = [model(input_ids=ids, labels=labels).loss * n for (ids, labels), n in zip(rows, counts, strict=True)]
    return sum(losses) / sum(counts)  # type: ignore[return-value]


def oracle(folder: str, answers: str) -> tuple[list[float], list[float]]:
    """(loss of every step, held-out loss before the first step and after each) with transformers and torch's AdamW."""

    def last(chat: list[tuple[str, str]]) -> tuple[bool, ...]:
        count = sum(role == "assistant" for role, _ in chat)
        return (True,) * count if answers == "all" else (*(False,) * (count - 1), True)

    learned = [
        tuple(bool(weight) for weight in WEIGHTED[i]) if i in WEIGHTED else last(chat) for i, chat in enumerate(CHATS)
    ]
    rows = [labelled(chat, own) for chat, own in zip(CHATS, learned, strict=True)]
    held = [labelled(chat, last(chat)) for chat in HELD_OUT]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, measured = [], [nll(model, held).item()]
    for _ in range(STEPS):
        loss = nll(model, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        measured.append(nll(model, held).item())
    return losses, measured


def sft_rank(texts: str) -> list[int]:
    from prime_megatron.config import SftConfig
    from prime_megatron.sft import train_sft

    return [
        int(train_sft(SftConfig.model_validate(row, strict=False), resume=None, overwrite=False))
        for row in json.loads(texts)
    ]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("loss")
    return {
        "run": {"output_dir": str(folder), "steps": STEPS},
        "model": make_model(folder / "model", hidden=32, layers=2),
        "experts": experts(folder / "experts"),
        "dtype": "float32",
        "data": {
            "train": [write(folder / "rows.jsonl", CHATS)],
            "held_out": [write(folder / "held.jsonl", HELD_OUT)],
        },
        "optimizer": {"lr": LR, "schedule": "constant"},
        "eval_every": 1,
        "checkpoint": {"save_final": False, "export_final": False},
        "log": {"tensorboard": False},
    }


def experts(folder: Path) -> str:
    """A small mixture of experts with the toy's tokenizer."""
    mcore_models.make_model(folder, "qwen3_moe", num_hidden_layers=2)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


EXAMPLES = {"last": 4, "all": 2 + 3 + 1 + 1}
"""Rows of the chats as they are learned: all of them make a step."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_are_those_of_transformers(task: dict[str, Any], name: str, tmp_path: Path) -> None:
    world, parallel, packing = LAYOUTS[name]
    base = {key: value for key, value in task.items() if key != "experts"}
    model = task["experts" if "expert" in parallel else "model"]
    runs = {
        answers: base
        | {"model": model}
        | {"run": {"output_dir": str(tmp_path / answers), "steps": STEPS}}
        | {"data": task["data"] | {"answers": answers}, "batch_size": count}
        | {"parallel": parallel, "packing": packing}
        for answers, count in EXAMPLES.items()
    }
    assert run_ranks(sft_rank, world, json.dumps(list(runs.values())), timeout_s=200.0) == [[0, 0]] * world
    for answers, config in runs.items():
        rows, (losses, measured) = read_lines(config, "metrics.jsonl"), oracle(model, answers)
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert [row["sft/loss"] for row in rows[1:]] == pytest.approx(losses, abs=1e-5)
        assert [row["eval/loss"] for row in rows] == pytest.approx(measured, abs=1e-5)
        assert [row["eval/perplexity"] for row in rows] == pytest.approx([math.exp(x) for x in measured], rel=1e-5)
        assert all(row["speed/utilisation"] > 0 and row["time/step_s"] > 0 for row in rows[1:])
    assert oracle(model, "last")[0] != pytest.approx(oracle(model, "all")[0], abs=1e-3)
