"""prime-megatron evaluate: a model on a suite, figures with intervals, and the contract beside them."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prime_megatron.cli.engine_options import (
    Teller,
    add_engine_options,
    add_grading_options,
    endpoint_of,
    offline_model,
    prepare_grading,
    verify_options,
)
from prime_megatron.cli.model_folder import model_folder
from prime_megatron.cli.options import new_verb
from prime_megatron.errors import InputError
from prime_megatron.evaluate.contract import grader_contract, set_contract, suite_contract
from prime_megatron.evaluate.figures import SetFigures, set_figures
from prime_megatron.evaluate.given import given_responses
from prime_megatron.evaluate.grading import SetGrader
from prime_megatron.evaluate.item import Item
from prime_megatron.evaluate.ready import mark_of
from prime_megatron.evaluate.report import print_figures
from prime_megatron.evaluate.results import RESULTS, SAMPLES, TIMING, ByQuestion, shares_of, write_json, write_results
from prime_megatron.evaluate.sets import read_sets
from prime_megatron.evaluate.statistics import macro_interval
from prime_megatron.evaluate.suite import MODES, Suite, known_suites, load_suite
from prime_megatron.generate.blocks import open_blocks, whole_file
from prime_megatron.generate.run import answer_blocks, in_blocks
from prime_megatron.generate.sample import GeneratedSample, format_sample
from prime_megatron.run.respondents import EndpointRespondent, EngineRespondent, GivenRespondent, Respondent
from prime_megatron.verify import Verifiers, build_verifiers

_WORK = "unfinished"
_EPILOG = """\
examples:
  prime-megatron evaluate runs/quickstart/policy suite.yaml --output eval/quickstart
  prime-megatron evaluate MODEL prime --data PRIME/eval --output eval/7b --engine vllm --dtype bfloat16
  prime-megatron evaluate MODEL math --data data --output eval/7b --sets math500 --n 8 --temperature 0.6
  prime-megatron evaluate canonical suite.yaml --output eval/check      # the graders on the sets' own solutions
  prime-megatron evaluate eval/7b/samples suite.yaml --output eval/again # grade given responses again
  prime-megatron compare eval/7b eval/other

MODEL is an HF folder, a checkpoint of a run, an endpoint's model name (--endpoint), `canonical`, `dealt`, or samples.
The same command goes on after an interruption. docs/evaluation.md says what a suite is.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "evaluate",
        summary="evaluate a model on a suite",
        description="Answer and grade the sets of a suite: avg@n, pass@k, majority@k, with intervals and a contract.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="what answers, see below")
    parser.add_argument("suite", metavar="SUITE", help=f"a YAML file, or one of {', '.join(known_suites())}")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where figures and samples go")
    parser.add_argument("--data", metavar="DIR", help="folder of the sets' files (default: the YAML file's own)")
    parser.add_argument("--mode", choices=MODES, default="fixed", help="which of the suite's wordings and limits")
    parser.add_argument("--sets", metavar="NAME,...", help="some of the suite's sets")
    parser.add_argument("--overwrite", action="store_true", help="delete what is in DIR first")
    group = parser.add_argument_group("over every set")
    group.add_argument("--limit", type=int, metavar="N", help="ask the first N questions")
    group.add_argument("--n", type=int, metavar="N", help="samples to each question")
    group.add_argument("--temperature", type=float, metavar="T", help="0: greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="nucleus")
    group.add_argument("--max-tokens", type=int, metavar="N", help="of a response")
    add_engine_options(parser)
    add_grading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code.

    Raises:
        InputError: before anything is asked or written, for all that can be told then.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    suite = load_suite(args.suite, args.data, args.mode, _over(args), _names(args.sets))
    items = read_sets(suite)
    _check_output(args)
    figures: dict[str, SetFigures] = {}
    shares: ByQuestion = {}
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        verifiers = stack.enter_context(build_verifiers(verify_options(args)))
        for own in items.values():
            prepare_grading([item.question for item in own], verifiers, args)
        respondent = stack.enter_context(_respondent(args, suite, items, verifiers, stack))
        contract = _contract(args, suite, items, respondent)
        if args.overwrite:
            shutil.rmtree(args.output, ignore_errors=True)
        for name in suite.sets:
            start_s = time.monotonic()
            samples = _answered(args.output, suite, name, respondent, contract, items[name])
            figures[name], shares[name] = _figures(suite, name, items[name], samples)
            seconds[name] = time.monotonic() - start_s
    write_json(args.output / TIMING, {"seconds": seconds})
    write_results(args.output, figures, shares, contract)
    shutil.rmtree(args.output / _WORK)
    print_figures(figures, macro_interval([list(own.values()) for own in shares.values()]), seconds)
    print(f"written: {args.output}")
    return 0


def _over(args: argparse.Namespace) -> dict[str, Any]:
    """The user's own keys."""
    names = ("limit", "n", "temperature", "top_p", "max_tokens")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _check_output(args: argparse.Namespace) -> None:
    output = args.output
    if args.overwrite or not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} exists and is no folder; name another output")
    if (output / RESULTS).exists():
        raise InputError(f"{output} holds a finished evaluation; name another output, or give --overwrite")
    if any(output.iterdir()) and not (output / _WORK).is_dir():
        raise InputError(f"{output} is not empty; name another output, or give --overwrite to delete what is there")


def _respondent(
    args: argparse.Namespace, suite: Suite, items: dict[str, list[Item]], verifiers: Verifiers, stack: ExitStack
) -> Respondent:
    if args.endpoint is not None:
        return EndpointRespondent(endpoint_of(args), suite, items, verifiers)
    given = {name: given_responses(args.model, name, own, len(items)) for name, own in items.items()}
    responses = {name: own for name, own in given.items() if own is not None}
    if len(responses) == len(items):
        return GivenRespondent(responses, suite, items, verifiers)
    if responses:
        lacking = next(name for name in items if name not in responses)
        raise InputError(f"{args.model}: no {lacking}.jsonl; it has {next(iter(responses))}.jsonl (choose with --sets)")
    folder = stack.enter_context(model_folder(args.model, args.template, args.output.with_name(f".{args.output.name}")))
    model = offline_model(args, folder)
    return EngineRespondent(model, suite, items, verifiers, args.max_tokens, args.output / _WORK / "engine.log")


def _contract(
    args: argparse.Namespace, suite: Suite, items: dict[str, list[Item]], respondent: Respondent
) -> dict[str, Any]:
    ready = respondent.ready
    return {
        "suite": suite_contract(suite),
        "model": respondent.identity,
        "grader": grader_contract(verify_options(args)),
        "sets": {
            name: set_contract(suite.sets[name], [item.question for item in own], ready.get(name))
            for name, own in items.items()
        },
    }


def _answered(
    output: Path,
    suite: Suite,
    name: str,
    respondent: Respondent,
    contract: dict[str, Any],
    items: Sequence[Item],
) -> list[GeneratedSample]:
    """A set's samples by question, in the file's order; those of an earlier attempt are not asked again."""
    questions = respondent.questions(name)
    by_block = in_blocks(questions, respondent.num_samples(name), suite.block)
    request = {"model": contract["model"], "grader": contract["grader"], "set": contract["sets"][name]}
    request["draw"] = [suite.seed, suite.block, name]
    with open_blocks(output / _WORK / name, request) as blocks:
        if not all(blocks.has(index) for index in range(len(by_block))):
            answer_blocks(blocks, by_block, respondent.answerer(name), Teller(name))
        samples = [sample for index in range(len(by_block)) for sample in blocks.read(index)]
    place = {item.question.id: index for index, item in enumerate(items)}
    samples.sort(key=lambda sample: (place[sample.id], sample.sample))
    (output / SAMPLES).mkdir(exist_ok=True)
    with whole_file(output / SAMPLES / f"{name}.jsonl") as file:
        for sample in samples:
            file.write(format_sample(sample).encode())
    return samples


def _figures(
    suite: Suite, name: str, items: Sequence[Item], samples: Sequence[GeneratedSample]
) -> tuple[SetFigures, dict[str, float]]:
    grader = SetGrader(suite.sets[name], items)
    n = len(samples) // len(items)
    marks = [[mark_of(sample, grader) for sample in samples[first : first + n]] for first in range(0, len(samples), n)]
    ids = [item.question.id for item in items]
    return set_figures(marks, votes=grader.votes), shares_of(ids, marks)
