"""What a run reads before it writes anything: the policy's config, the tokenizer, the prompts."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import DataConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.rows import PromptRow, Remarks, read_prompt_rows
from prime_megatron.data.stream import PromptStream, eval_prompts
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.data.told import Telling
from prime_megatron.errors import InputError
from prime_megatron.evaluate.responses import Encoder, read_held_out
from prime_megatron.families import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.check_models import compare_models
from prime_megatron.run.context import prompt_limit
from prime_megatron.run.suite import AskedSuite, ask_suite
from prime_megatron.run.survey import Survey, survey
from prime_megatron.run.truths import NUM_NAMED, Proof, problem_of, prove_truths, refusal_of
from prime_megatron.types import Group, Prompt
from prime_megatron.verify import Verifiers
from prime_megatron.verify.code.check import prove_jail


@dataclass(frozen=True)
class Inputs:
    """Read and checked; the same on every rank."""

    family: FamilyConfig
    tokenizer: Tokenizer
    prompts: PromptStream
    held_out: list[Prompt]
    labelled: list[Group]
    """Of eval.prm_rows."""
    suite: AskedSuite | None
    """eval.suite; None: the run has none."""
    survey: Survey
    """The training prompts that are skipped."""
    num_left_out: int
    """Training rows that data.skip_abilities and data.bad_truth left out."""
    warnings: tuple[str, ...]
    """What the run says of its data at the start, a line each."""


@dataclass
class _Rows:
    """Rows of data.train or data.eval that can be scored, and what was left out."""

    rows: list[PromptRow]
    num_left_out: int = 0
    warnings: tuple[str, ...] = ()


def read_inputs(config: TrainConfig, verifiers: Verifiers, topology: Topology) -> Inputs:
    """Everything but the weights. Collective over the world.

    Raises:
        InputError: a folder, a file, a row or an ability that cannot be used; code rows on a machine that does not hold
            what programs try.
    """
    folder = policy_folder_of(config)
    compare_models(config)
    family = read_config(folder)
    limit, short = prompt_limit(config, family)
    tokenizer = load_tokenizer(
        folder,
        family.vocab,
        trust_remote_code=config.models.trust_remote_code,
        options=ChatOptions(*config.data.template_options()),
    )
    refusal, train, held, suite = None, _Rows([]), _Rows([]), None
    try:
        train = _usable_rows(config.data.train, config.data, verifiers)
        held = _usable_rows(config.data.eval, config.data, verifiers)
        suite = ask_suite(config, tokenizer, verifiers)
        asked = [] if suite is None else [question for ready in suite.ready for question in ready.questions]
        programs = any(verifiers.runs_programs(row.ability) for row in (*train.rows, *held.rows, *asked))
        if programs and config.verify.code.jail != "none":
            prove_jail(config.verify.code)
    except InputError as error:
        refusal = str(error)
    # One node's kernel may refuse what another's does not: all ranks end, or none.
    refusals = [text for text in gather_all(refusal) if text is not None]
    if refusals:
        raise InputError(refusals[0])
    proof = prove_truths((*train.rows, *held.rows), verifiers)
    train = _proven(train, proof, config.data, config.data.train)
    held = _proven(held, proof, config.data, config.data.eval)
    held_out, skipped = eval_prompts(held.rows, tokenizer, max_prompt_tokens=limit, max_prompts=config.eval.max_prompts)
    prompts = PromptStream(
        train.rows,
        tokenizer,
        max_prompt_tokens=limit,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
        telling=Telling.of(config),
        teaching=config.data.teaching if config.data.draw == "teaching" else None,
    )
    found = survey(prompts, topology)
    lines = [
        short,
        proof.remark,
        found.line,
        f"data.eval: {skipped} prompts over {limit} tokens are skipped" if skipped else None,
    ]
    warnings = (*(line for line in lines if line is not None), *train.warnings, *held.warnings)
    longest = limit + config.rollout.sampling.max_response_tokens
    labelled = read_held_out(config.eval.prm_rows, Encoder(tokenizer, family.vocab, longest, step_end_table_V=None))
    return Inputs(family, tokenizer, prompts, held_out, labelled, suite, found, train.num_left_out, warnings)


def _usable_rows(paths: Sequence[str], config: DataConfig, verifiers: Verifiers) -> _Rows:
    """Rows that can be scored, and a line for each kind that was left out or of which something is not used."""
    rows: list[PromptRow] = []
    left_out: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    remarks = Remarks()
    for row in read_prompt_rows(paths, config.system_prompt, remarks):
        if row.ability in config.skip_abilities:
            left_out[f"data.skip_abilities: rows of ability {row.ability!r} left out"] += 1
            continue
        try:
            problems = [verifiers.truth_problem(row.ability, truth) for truth in row.truths]
        except InputError as error:
            raise InputError(f"{row.origin}: {error}") from None
        problem = next((problem for problem in problems if problem is not None), None)
        if problem is None:
            rows.append(row)
        else:
            bad.append(f"{row.origin}: ground truth: {problem}")
    lines = [f"{count} {line}" for line, count in left_out.items()]
    usable = _Rows(rows, left_out.total(), (*lines, *remarks.lines()))
    return _without_bad(usable, bad, config, paths) if bad or not rows else usable


def _without_bad(usable: _Rows, bad: Sequence[str], config: DataConfig, paths: Sequence[str]) -> _Rows:
    """The rows with what is said of those whose ground truth is bad. Raises InputError where they are refused."""
    if bad and config.bad_truth == "refuse":
        raise InputError(refusal_of(bad))
    if paths and not usable.rows:
        raise InputError(f"{', '.join(paths)}: no row is left to use ({bad[0] if bad else 'data.skip_abilities'})")
    said = [f"{len(bad)} data.bad_truth: rows without a usable ground truth left out"] if bad else []
    said += ["the first of them: " + "; ".join(bad[:NUM_NAMED])] if bad else []
    return _Rows(usable.rows, usable.num_left_out + len(bad), (*said, *usable.warnings))


def _proven(usable: _Rows, proof: Proof, config: DataConfig, paths: Sequence[str]) -> _Rows:
    """The rows whose ground truths equal themselves. Raises InputError as `_without_bad`."""
    found = [(row, problem_of(row, proof)) for row in usable.rows]
    bad = [f"{row.origin}: ground truth: {problem}" for row, problem in found if problem is not None]
    rows = [row for row, problem in found if problem is None]
    return _without_bad(_Rows(rows, usable.num_left_out, usable.warnings), bad, config, paths) if bad else usable
