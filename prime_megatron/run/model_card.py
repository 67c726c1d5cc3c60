"""README.md of an exported model: what trained it, how it did, whose licence it is under, how it is used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prime_megatron import __version__
from prime_megatron.config import PrmReference, TrainConfig
from prime_megatron.config.load import dump_yaml
from prime_megatron.evaluate import plain_rewards
from prime_megatron.run.prm_note import NOTE_FILE, PrmNote, note_of, write_note
from prime_megatron.step.plan import plan_step

CARD_FILE = "README.md"
SOURCE_CARD = "SOURCE_README.md"
"""The card of the folder that the model started from, where it had one."""
USAGE = """\
import json, sys
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

{functions}
folder, question, answer = sys.argv[1:]
note = json.load(open(folder + "/prm.json"))
load = AutoModelForCausalLM.from_pretrained
prm, reference = load(folder, dtype=torch.float32), load(note["reference"], dtype=torch.float32)
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
chat = [{{"role": "user", "content": question}}]
chatty = tokenizer.chat_template is not None
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) if chatty else question
prompt_ids = tokenizer(prompt, add_special_tokens=not chatty).input_ids
response_ids = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
values = rewards(prm, reference, note["beta"], prompt_ids, response_ids)
logit = values.mean() if note["loss"] == "prefix_value" else values.sum()
print(json.dumps({{"process_rewards": values.tolist(), "probability": logit.sigmoid().item()}}))
"""
LM_EVAL = """\
lm_eval --model hf --model_args pretrained=FOLDER --tasks gsm8k --apply_chat_template --num_fewshot 0
"""


@dataclass(frozen=True)
class Card:
    """What is known of an exported model."""

    name: str
    """The run's, and the model's role in it."""
    verb: str
    """What trained it: train, sft or prm."""
    source: str
    """HF folder that it started from."""
    step: int
    config: str
    """The run's resolved config, YAML."""
    figures: Mapping[str, float]
    """The last evaluation, by metric; empty: there was none."""
    note: PrmNote | None = None
    """Of an implicit PRM."""
    head: bool = False
    """A PRM with a head of one value."""


def train_card(config: TrainConfig, role: str, figures: Mapping[str, float]) -> Card:
    """Of the policy or the PRM of a PRIME run; figures: the last evaluation's, of both."""
    models = {model.role: model for model in plan_step(config).models}
    note = None
    head = models[role].value_head
    if role == "prm" and not head:
        # With prm.reference policy the reference moved along: the exported policy is the last one of it.
        moving = config.prm.reference is PrmReference.policy
        folder = str(Path(config.run.output_dir) / "policy") if moving else models["reference"].folder
        note = note_of(folder, beta=config.prm.beta, loss=config.prm.loss)
    shown = {name: value for name, value in figures.items() if name.startswith("eval/prm_") == (role == "prm")}
    name = f"{config.run.name}: {role}"
    return Card(name, "train", models[role].folder, config.run.steps, dump_yaml(config), shown, note, head)


def write_card(folder: Path, card: Card) -> None:
    """README.md, and prm.json where it is a PRM; the source's own card is kept beside them."""
    source_card = Path(card.source) / CARD_FILE
    (folder / NOTE_FILE).unlink(missing_ok=True)  # of a PRM that this model started from
    if source_card.is_file():
        (folder / SOURCE_CARD).write_bytes(source_card.read_bytes())
    if card.note is not None:
        write_note(folder, card.note)
    (folder / CARD_FILE).write_text(card_text(card), encoding="utf-8")


def card_text(card: Card) -> str:
    """The card, Markdown with the front matter of Hugging Face's model cards."""
    licence = licence_of(Path(card.source))
    kind = "An implicit process reward model" if card.note is not None else "A language model"
    kind = "A process reward model with a head of one value" if card.head else kind
    head = [
        "---", *(licence or ["license: unknown"]),
        "library_name: transformers", "tags: [prime, prime_megatron]", "---", "",
        f"# {card.name}", "",
        f"{kind}, trained by prime_megatron {__version__} (`prime-megatron {card.verb}`), "
        f"{card.step} steps from `{card.source}`.", "",
    ]  # fmt: skip
    stated = f"`{licence[0]}`, as its card says" if licence else "not stated in its folder: ask its authors"
    parts = [*head, f"Licence: that of the model it started from, {stated}; licence files are copied.", ""]
    if card.figures:
        rows = [f"| {name} | {value:.4g} |" for name, value in sorted(card.figures.items())]
        parts += ["## Evaluation", "", f"At step {card.step}; docs/reference/metrics.md says what each figure is.", ""]
        parts += ["| figure | value |", "|---|---|", *rows, ""]
    use = _prm_use(card.note) if card.note is not None else _head_use() if card.head else _model_use()
    parts += ["## Use", "", *use]
    return "\n".join([*parts, "", "## Config", "", "```yaml", card.config.rstrip(), "```", ""])


def _prm_use(note: PrmNote) -> list[str]:
    functions = "\n".join(inspect.getsource(part) for part in (plain_rewards.logprobs, plain_rewards.rewards))
    return [
        f"The reward of a response token is beta * (log PRM - log reference), beta = {note.beta:g}, the reference "
        f"`{note.reference}` (`{NOTE_FILE}` names both). With plain transformers, as `python usage.py FOLDER QUESTION "
        "ANSWER`:", "",
        "```python", USAGE.format(functions=functions).rstrip(), "```", "",
        "`prime-megatron score FOLDER ANSWERS.jsonl --output OUT.jsonl` gives the same, and per step, in any layout.",
    ]  # fmt: skip


def _head_use() -> list[str]:
    return [
        "It loads as AutoModelForSequenceClassification. v_t, the sigmoid of its logit where the text ends with token "
        "t, is the probability that the response succeeds; the reward of a response token is v_t - v_{t-1}.",
    ]


def _model_use() -> list[str]:
    return [
        "It loads as any model of transformers, and runs in lm-eval with the chat template that it was trained with:",
        "", "```", LM_EVAL.rstrip(), "```",
    ]  # fmt: skip


def licence_of(source: Path) -> list[str]:
    """The lines on the licence in the front matter of a folder's card; none where it has none."""
    try:
        text = (source / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    found = re.findall(r"^license(?:_name|_link)?:[ \t]*\S.*$", front[1], re.MULTILINE) if front is not None else []
    return [] if found == ["license: unknown"] else found
