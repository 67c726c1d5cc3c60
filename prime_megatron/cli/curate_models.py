"""Stages of `prime-megatron curate` that ask a model: choices, attempts, sft."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prime_megatron.cli.curate_texts import Arguments, Report, StageVerb, decide_rows, head_of
from prime_megatron.cli.engine_options import (
    add_engine_options,
    add_grading_options,
    endpoint_of,
    offline_model,
    verify_options,
)
from prime_megatron.cli.generate import plain_answer
from prime_megatron.cli.model_folder import model_folder
from prime_megatron.config.curate import AskConfig, CurateConfig
from prime_megatron.config.load import to_dict
from prime_megatron.curate.asking import AnswererOf, Draws, draws_of
from prime_megatron.curate.attempts import Judge, attempt_lines
from prime_megatron.curate.choices import ChoiceRewriter
from prime_megatron.curate.decision import Decision
from prime_megatron.curate.row import CuratedRow
from prime_megatron.curate.sft_data import AnswerJudge, answer_lines
from prime_megatron.curate.stage import (
    Files,
    RowReader,
    Source,
    Teller,
    batches,
    fill_blocks,
    finish,
    num_blocks,
    survey,
)
from prime_megatron.errors import InputError
from prime_megatron.generate.blocks import Blocks, open_blocks
from prime_megatron.generate.endpoint import Asking, EndpointAnswerer
from prime_megatron.generate.from_engine import EngineAnswerer, Ungraded
from prime_megatron.generate.identity import model_digests
from prime_megatron.generate.run import Answerer, questions_per_block
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.generate.tolerance import Tolerance
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw
from prime_megatron.rollout.sampling import EVAL
from prime_megatron.run.offline import context_of, load_offline_tokenizer, offline_generator
from prime_megatron.verify import Verifiers, build_verifiers
from prime_megatron.verify.code.check import prove_jail

Lines = Callable[[list[CuratedRow], Answerer], Iterable[bytes]]


class Model:
    """One of the models that a stage asks.

    Args:
        args: the command line.
        name: HF folder, checkpoint, or an endpoint's name for it.
        most_failed: failed requests in a row that end the stage.
        max_tokens: longest response that will be asked.
        stack: holds what it needs until the stage ends.
        work: a folder for its files.
    """

    def __init__(
        self, args: Arguments, name: str, most_failed: int, max_tokens: int, stack: ExitStack, work: Path
    ) -> None:
        self.name = name
        self._args, self._work = argparse.Namespace(**vars(args) | {"model": name}), work
        self._tolerance = Tolerance(most_failed)
        if args.endpoint is not None:
            self.identity: dict[str, Any] = {"endpoint": endpoint_of(self._args).url, "name": name}
            return
        self._folder = stack.enter_context(model_folder(name, args.template, work / "model"))
        context = context_of(offline_model(self._args, self._folder))
        if max_tokens >= context:
            raise InputError(f"max_tokens {max_tokens}: {name} holds {context} tokens, prompt included")
        how = {key: getattr(args, key) for key in ("engine", "dtype", "tensor", "max_concurrent")}
        self.identity = how | model_digests(self._folder)

    @contextmanager
    def open(self, per_block: int) -> Iterator[AnswererOf]:
        """The model, ready to be asked ``per_block`` questions at once."""
        if self._args.endpoint is not None:
            yield self._of_endpoint
            return
        model = offline_model(self._args, self._folder)
        tokenizer, context = load_offline_tokenizer(model), context_of(model)
        self._work.mkdir(parents=True, exist_ok=True)
        log = self._work / "engine.log"
        with offline_generator(model, tokenizer, Ungraded(), max_tokens=context, log=log) as generator:

            def of_engine(draws: Draws) -> Answerer:
                greedy = draws.temperature == 0
                sampling = Sampling(draws.max_tokens, 1.0 if greedy else draws.temperature, draws.top_p, greedy)
                draw = Draw(draws.seed, 0, EVAL, sampling, draws.n, per_block, (), context)
                return EngineAnswerer(generator, draw, tokenizer, graded=False, logprobs=False)

            yield of_engine

    def _of_endpoint(self, draws: Draws) -> Answerer:
        asking = Asking(draws.n, draws.temperature, draws.top_p, draws.max_tokens, (), False, draws.seed)
        return EndpointAnswerer(endpoint_of(self._args), asking, None, plain_answer, self._tolerance)


def _add_options(parser: argparse.ArgumentParser, *, several: bool) -> None:
    if several:
        parser.add_argument(
            "--model", action="append", required=True, metavar="MODEL", help="who is asked; may be given again"
        )
    else:
        parser.add_argument(
            "--model", required=True, metavar="MODEL", help="HF folder, checkpoint, or an endpoint's name"
        )
    add_engine_options(parser)
    add_grading_options(parser)


def _models(args: Arguments, ask: AskConfig, n: int, source: Source, target: Files, stack: ExitStack) -> list[Model]:
    if ask.temperature == 0 and n > 1:
        raise InputError(f"n is {n} at temperature 0: all answers would be one; give n=1 or a temperature")
    names = args.model if isinstance(args.model, list) else [args.model]
    if len(set(names)) < len(names):
        raise InputError("--model: the same model is named twice; raise attempts.n for more attempts")
    most = min(ask.max_failed, source.rows * n)
    works = [target.blocks / f"model-{number}" for number in range(len(names))]
    return [Model(args, name, most, ask.max_tokens, stack, work) for name, work in zip(names, works, strict=True)]


def _verifiers(args: Arguments, abilities: set[str], stack: ExitStack) -> Verifiers:
    options = verify_options(args)
    verifiers = stack.enter_context(build_verifiers(options))
    for ability in sorted(abilities):
        verifiers.require(ability)
    if "code" in abilities and args.code_jail != "none":
        prove_jail(options.code)
    return verifiers


def _choices(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    read = RowReader()
    source = survey(files, read, "choices")
    verifiers = _verifiers(args, {"math"}, stack)
    (model,) = _models(args, config.choices.ask, 1, source, target, stack)
    settings = to_dict(config.choices) | {"wording": to_dict(config.wording), "model": model.identity}
    block = config.choices.ask.block
    answerer_of = stack.enter_context(model.open(block))
    rewriter = ChoiceRewriter(config.choices, config.wording, answerer_of, verifiers)
    return decide_rows("choices", target, source, read, settings, rewriter.decide, block)


def _asked(
    name: str,
    models: Sequence[Model],
    draws: Draws,
    block: int,
    source: Source,
    read: RowReader,
    target: Files,
    head: Report,
    lines: Lines,
    stack: ExitStack,
) -> list[Blocks]:
    """All models' samples, a folder of blocks for each; those of an earlier attempt are not asked again."""
    size = questions_per_block(draws.n, block)
    found = []
    for number, model in enumerate(models):
        request = {"stage": name, "block": size, "model": model.identity, **head}
        folder = target.blocks / f"samples-{number}"
        blocks = stack.enter_context(open_blocks(folder, request))
        found.append(blocks)
        if all(blocks.has(index) for index in range(num_blocks(source, size))):
            continue
        with model.open(size) as answerer_of:
            answerer = answerer_of(draws)
            tell = Teller(f"{name}: {model.name}")
            fill_blocks(blocks, source, read, size, lambda rows, who=answerer: lines(rows, who), tell)  # type: ignore[misc]
    return found


def _with_samples(
    source: Source, read: RowReader, size: int, found: Sequence[Blocks]
) -> Iterator[tuple[CuratedRow, list[list[GeneratedSample]]]]:
    """Every row with its samples of each model."""
    for index, rows in enumerate(batches(source, read, size)):
        by_model = [blocks.read(index) for blocks in found]
        for place, row in enumerate(rows):
            own = [samples[place * (len(samples) // len(rows)) :][: len(samples) // len(rows)] for samples in by_model]
            yield row, own


def _attempts(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    read, ours = RowReader(), config.attempts
    source = survey(files, read, "attempts")
    verifiers = _verifiers(args, read.abilities, stack)
    models = _models(args, ours.ask, ours.n, source, target, stack)
    head = head_of(source, to_dict(ours) | {"models": [model.identity for model in models]})
    draws = draws_of(ours.ask, ours.n)

    def lines(rows: list[CuratedRow], answerer: Answerer) -> Iterable[bytes]:
        return attempt_lines(rows, ours, answerer, verifiers)

    found = _asked("attempts", models, draws, ours.ask.block, source, read, target, head, lines, stack)
    judge = Judge(ours, [model.name for model in models])
    size = questions_per_block(ours.n, ours.ask.block)
    decisions = (judge.decide(row, own) for row, own in _with_samples(source, read, size, found))
    return finish(target, "attempts", head, decisions, judge.report)


def _sft(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    read, ours = RowReader(), config.sft
    source = survey(files, read, "sft")
    verifiers = _verifiers(args, read.abilities, stack)
    models = _models(args, ours.ask, ours.n, source, target, stack)
    head = head_of(source, to_dict(ours) | {"model": models[0].identity})

    def lines(rows: list[CuratedRow], answerer: Answerer) -> Iterable[bytes]:
        return answer_lines(rows, answerer, verifiers)

    found = _asked("sft", models, draws_of(ours.ask, ours.n), ours.ask.block, source, read, target, head, lines, stack)
    judge = AnswerJudge(ours)
    size = questions_per_block(ours.n, ours.ask.block)
    decisions: Iterator[Decision] = (judge.decide(row, own[0]) for row, own in _with_samples(source, read, size, found))
    return finish(target, "sft", head, decisions, judge.report)


STAGES = {
    "choices": StageVerb(
        "turn multiple choice into open questions",
        "Three passes of a model: can the choices go, the question without them, the solution without them.",
        lambda parser: _add_options(parser, several=False),
        _choices,
    ),
    "attempts": StageVerb(
        "attempt every problem, keep those that hold",
        "n attempts of each model at every problem: agreement, match with the reference, solvability, difficulty.",
        lambda parser: _add_options(parser, several=True),
        _attempts,
    ),
    "sft": StageVerb(
        "answers in named actions for supervised fine-tuning",
        "Answers in steps with named actions, checked for their form and for being right.",
        lambda parser: _add_options(parser, several=False),
        _sft,
    ),
}
