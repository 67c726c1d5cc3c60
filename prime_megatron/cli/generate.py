"""prime-megatron generate: prompts in, samples out, resumable block by block."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from prime_megatron.generate.blocks import Blocks, open_blocks, remove_blocks
from prime_megatron.generate.endpoint import Asking, EndpointAnswerer
from prime_megatron.generate.from_engine import EngineAnswerer, Ungraded
from prime_megatron.generate.identity import model_digests
from prime_megatron.generate.questions import Question, digest_of, read_questions
from prime_megatron.generate.run import Answerer, answer_blocks, in_blocks, questions_per_block
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw
from prime_megatron.rollout.sampling import EVAL
from prime_megatron.run.offline import context_of, load_offline_tokenizer, offline_generator
from prime_megatron.verify import Answer, Verifiers, build_verifiers

_EPILOG = """\
examples:
  prime-megatron generate runs/quickstart/policy prompts.jsonl --output samples.jsonl --n 4
  prime-megatron generate MODEL prompts.parquet --output samples.jsonl --engine vllm --dtype bfloat16 --grade
  prime-megatron generate MODEL prompts.jsonl --output part-3.jsonl --shard 3/16
  prime-megatron generate NAME prompts.jsonl --output samples.jsonl --endpoint http://127.0.0.1:8000/v1

Rows need a `prompt` (text, or chat messages); `id`, `ability` and `reward_model.ground_truth` are taken along. Blocks
of answers are kept in OUTPUT.blocks until all are there: the same command goes on after an interruption.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "generate",
        summary="answer prompts: a file of samples",
        description="Answer the prompts of a file n times each, with an engine or an OpenAI-compatible endpoint.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="HF folder, checkpoint of a run, or an endpoint's model name")
    parser.add_argument("prompts", metavar="PROMPTS", nargs="+", help=".jsonl, .json or .parquet rows with a prompt")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.jsonl", help="where the samples go")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl and forget kept blocks")
    group = parser.add_argument_group("sampling")
    group.add_argument("--n", type=int, default=1, metavar="N", help="samples to each prompt (default: 1)")
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: greedy (default: 1)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus (default: 1)")
    group.add_argument("--max-tokens", type=int, default=3072, metavar="N", help="of a response (default: 3072)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a response; may be repeated")
    group.add_argument("--system", metavar="TEXT", help="system prompt of chats that have none")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random streams (default: 0)")
    group.add_argument("--logprobs", action="store_true", help="write the log-prob of every token")
    group.add_argument("--grade", action="store_true", help="score answers by the rows' ability and ground truth")
    group.add_argument("--shard", metavar="I/N", help="answer every Nth prompt from the Ith on, I from 0")
    group.add_argument("--block", type=int, default=256, metavar="N", help="samples kept together (default: 256)")
    add_engine_options(parser)
    add_grading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer, block by block; returns the exit code.

    Raises:
        InputError: before anything is asked or written, for all that can be told then.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _check(args)
    questions = read_questions(args.prompts, args.system)
    mine = shard_of(questions, args.shard)
    kept = args.output.with_name(f"{args.output.name}.blocks")
    if args.overwrite:
        remove_blocks(kept)
        args.output.unlink(missing_ok=True)
    start_s = time.monotonic()
    by_block = in_blocks(mine, args.n, args.block)
    with ExitStack() as stack:
        scorer = stack.enter_context(build_verifiers(verify_options(args))) if args.grade else None
        if scorer is not None:
            prepare_grading(mine, scorer, args)
        request = _request(args, questions) | {"model": _ask_whom(args, stack, kept)}
        blocks = stack.enter_context(open_blocks(kept, request))
        if not all(blocks.has(index) for index in range(len(by_block))):
            with _answerer(args, mine, scorer, kept) as answerer:
                answer_blocks(blocks, by_block, answerer, Teller("generate"))
        samples = _finish(args, blocks, len(by_block))
    shutil.rmtree(kept)
    print(_summary(samples, len(mine), time.monotonic() - start_s, args.output))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, value in (("--n", args.n), ("--max-tokens", args.max_tokens), ("--block", args.block)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1 is needed")
    if args.temperature < 0 or not 0 < args.top_p <= 1:
        raise InputError("--temperature must be 0 or more, --top-p above 0 and at most 1")
    if args.temperature == 0 and args.n > 1:
        raise InputError(f"--n {args.n} at --temperature 0: all samples would be one; give --n 1 or a temperature")
    if args.seed < 0 or "" in args.stop:
        raise InputError("--seed must be 0 or more, --stop a text that is not empty")
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists; name another output, or give --overwrite to replace it")
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise InputError(f"{args.output}: must be a file in a folder that is there")


def shard_of(questions: Sequence[Question], shard: str | None) -> Sequence[Question]:
    """The questions of "i/n": the place of a row, not the number of rows, decides. Raises InputError: another form."""
    if shard is None:
        return questions
    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"--shard {shard!r}: not of the form I/N, such as 0/8")
    index, count = int(parts[0]), int(parts[1])
    if not index < count:
        raise InputError(f"--shard {shard}: I counts from 0 and stays below N")
    if len(questions) <= index:
        raise InputError(
            f"--shard {shard}: there are {len(questions)} prompts, so this shard is empty; take fewer shards"
        )
    return questions[index::count]


def _request(args: argparse.Namespace, questions: Sequence[Question]) -> dict[str, Any]:
    """Everything that an answer depends on, but for the model."""
    names = ("n", "temperature", "top_p", "max_tokens", "stop", "seed", "logprobs", "grade", "shard", "block")
    return {name: getattr(args, name) for name in names} | {"prompts": digest_of(questions)}


def _ask_whom(args: argparse.Namespace, stack: ExitStack, kept: Path) -> dict[str, Any]:
    """The model by content; the folder that holds it stays until the stack is closed."""
    if args.endpoint is not None:
        return {"endpoint": endpoint_of(args).url, "name": args.model}
    folder = stack.enter_context(model_folder(args.model, args.template, kept / "model"))
    args.model = folder
    how = {name: getattr(args, name) for name in ("engine", "dtype", "tensor", "max_concurrent")}
    return how | model_digests(folder)


@contextmanager
def _answerer(
    args: argparse.Namespace, questions: Sequence[Question], scorer: Verifiers | None, kept: Path
) -> Iterator[Answerer]:
    if args.endpoint is not None:
        asking = Asking(
            args.n, args.temperature, args.top_p, args.max_tokens, tuple(args.stop), args.logprobs, args.seed
        )
        yield EndpointAnswerer(endpoint_of(args), asking, scorer, plain_answer)
        return
    model = offline_model(args, args.model)
    tokenizer = load_offline_tokenizer(model)
    context = context_of(model)
    if args.max_tokens >= context:
        raise InputError(f"--max-tokens {args.max_tokens}: the model holds {context} tokens, prompt included")
    greedy = args.temperature == 0
    sampling = Sampling(args.max_tokens, 1.0 if greedy else args.temperature, args.top_p, greedy)
    per_block = questions_per_block(args.n, args.block)
    draw = Draw(args.seed, 0, EVAL, sampling, args.n, per_block, tuple(args.stop), context)
    log = kept / "engine.log"
    with offline_generator(model, tokenizer, scorer or Ungraded(), max_tokens=context, log=log) as generator:
        yield EngineAnswerer(generator, draw, tokenizer, graded=scorer is not None, logprobs=args.logprobs)


def plain_answer(question: Question, text: str) -> Answer:
    """What a verifier is asked about a response to a question."""
    return Answer(
        ability=question.ability,
        response=text,
        ground_truth=question.ground_truth,
        data_source=question.data_source,
        extra_info=question.extra_info,
        other_truths=question.other_truths,
    )


def _finish(args: argparse.Namespace, blocks: Blocks, count: int) -> list[GeneratedSample]:
    blocks.join(count, args.output)
    return [sample for index in range(count) for sample in blocks.read(index)]


def _summary(samples: Sequence[GeneratedSample], num_prompts: int, seconds: float, output: Path) -> str:
    cut = sum(sample.truncated for sample in samples) / len(samples)
    lengths = [len(sample.response_ids) for sample in samples if sample.response_ids is not None]
    parts = [f"{len(samples)} samples to {num_prompts} prompts in {seconds:.1f} s", f"{cut:.1%} truncated"]
    if lengths:
        parts.append(f"{sum(lengths) / len(lengths):.1f} tokens on average")
    outcomes = [sample.outcome for sample in samples if sample.outcome is not None]
    if outcomes:
        parts.append(f"mean outcome {sum(outcomes) / len(outcomes):.4f}")
    return f"{', '.join(parts)} -> {output}"
