"""prime-megatron score: a PRM's rewards for given responses, per token and per step."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

from prime_megatron.cli.options import new_verb, path_option
from prime_megatron.cli.scoring import check_output, start_scoring
from prime_megatron.cli.worker import is_worker, run_worker, world_size
from prime_megatron.config import ScoreConfig
from prime_megatron.config.load import load_score_config
from prime_megatron.errors import ExitCode, RunError

TOLERANCE = 1e-4
"""Largest difference of a float32 reward from transformers' that --check lets pass."""

_DESCRIPTION = """\
Give the implicit PRM's rewards for responses in JSON lines: prompt (chat messages or text) and response, as `generate`
writes them; prompt_ids and response_ids stand where they are. Every row comes back, in its order, with

  process_rewards  beta * (log PRM - log reference) of each response token
  step_rewards     the same summed over each step; step_ends: the steps' last tokens
  prm_score        their sum (their mean, where the PRM learned with prm.loss prefix_value); sigmoid(prm_score) is the
                   PRM's probability that the response is right

PRM is an exported folder; its prm.json names reference and beta. Keys of the layout follow as key=value:
docs/reference/config.md, "Scoring".
"""

_EPILOG = """\
examples:
  prime-megatron score runs/prm/model samples.jsonl --output scored.jsonl
  prime-megatron score runs/prm/model samples.jsonl --output scored.jsonl --check 20 dtype=float32
  prime-megatron score PRM samples.jsonl --output scored.jsonl reference=BASE beta=0.05 parallel.tensor=2 processes=2
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "score",
        summary="give a PRM's rewards for given responses",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("prm", metavar="PRM", help="HF folder of the PRM")
    parser.add_argument("input", type=path_option, metavar="IN.jsonl", help="the responses")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings: reference, beta, parallel.*, ...")
    parser.add_argument(
        "--output", type=path_option, required=True, metavar="OUT.jsonl", help="where the scored rows go"
    )
    parser.add_argument(
        "--check",
        type=int,
        default=0,
        metavar="N",
        help="score the first N responses by transformers in float32, too; a float32 run that is further away than "
        f"{TOLERANCE:g} ends with exit code 1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Launch, or be a rank; returns the exit code.

    Raises:
        InputError: before anything is started or written.
    """
    config = load_score_config(args.overrides)
    if is_worker():
        return run_worker(lambda: _score(args, config))
    check_output(args.output, overwrite=args.overwrite)
    from prime_megatron.evaluate.responses import read_responses
    from prime_megatron.run.scoring import check_scoring, resolve_prm

    read_responses(str(args.input), labelled=False)
    folders = resolve_prm(args.prm, config)
    check_scoring((folders.prm, folders.reference), config, config.processes)
    words = ["score", args.prm, str(args.input), "--output", str(args.output), "--check", str(args.check)]
    words += ["--overwrite"] if args.overwrite else []
    return start_scoring([*words, *args.overrides], config, lambda: _score(args, config))


def _score(args: argparse.Namespace, config: ScoreConfig) -> int:
    from prime_megatron.evaluate.responses import Encoder, read_responses
    from prime_megatron.families.read import read_config
    from prime_megatron.generate.blocks import whole_file
    from prime_megatron.run.prm_scorer import PrmScorer, Scored, encode_all, outcome_figures
    from prime_megatron.run.scoring import check_scoring, resolve_prm, scoring_groups, scoring_tokenizer

    folders = resolve_prm(args.prm, config)
    check_scoring((folders.prm, folders.reference), config, world_size())
    start_s = time.monotonic()
    responses = read_responses(str(args.input), labelled=False)
    vocab = read_config(folders.prm).vocab
    tokenizer = scoring_tokenizer(folders.prm, vocab, config)
    table_V = tokenizer.step_end_table(config.step_delimiter, vocab)
    encoded = encode_all(Encoder(tokenizer, vocab, config.max_tokens, table_V), responses, config.max_tokens)
    with scoring_groups(config) as topology:
        scorer = PrmScorer(folders, config, topology)
        scored: list[Scored] = []
        for part in scorer.scores(encoded, responses):
            scored += part
            if topology.rank == 0:
                print(f"scored {len(scored)} of {len(encoded)} responses", flush=True)
    if not scored:
        return ExitCode.DONE  # not the first rank
    with whole_file(args.output) as out:
        for response, one, tokens in zip(responses, scored, encoded, strict=True):
            _write(out, response.row, one, tokens)
    seconds = time.monotonic() - start_s
    num_tokens = sum(len(one.response_ids) for one in encoded)
    print(f"{len(scored)} responses, {num_tokens:,} response tokens in {seconds:.1f} s -> {args.output}")
    if all(response.sample.outcome is not None for response in responses):
        figures = outcome_figures(responses, scored, folders.beta)
        print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if args.check:
        _check(args, config, folders, encoded[: args.check], scored[: args.check])
    return ExitCode.DONE


def _write(out: BinaryIO, row: Any, scored: Any, tokens: Any) -> None:
    added = {
        "prompt_ids": tokens.prompt_ids,
        "response_ids": tokens.response_ids,
        "process_rewards": [_digits(reward) for reward in scored.process_rewards],
        "step_rewards": [_digits(reward) for reward in scored.step_rewards],
        "step_ends": tokens.step_ends,
        "prm_score": _digits(scored.logit),
    }
    out.write(json.dumps({**row, **added}).encode() + b"\n")


def _digits(value: float) -> float:
    """The nine digits that hold a float32."""
    return float(f"{value:.9g}")


def _check(args: argparse.Namespace, config: ScoreConfig, folders: Any, encoded: Sequence[Any], scored: Any) -> None:
    """Compare with transformers.

    Raises:
        RunError: a float32 run that is too far away.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from prime_megatron.evaluate.plain_rewards import rewards

    prm, reference = (
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
        for folder in (folders.prm, folders.reference)
    )
    largest = 0.0
    for tokens, one in zip(encoded, scored, strict=True):
        plain = rewards(prm, reference, folders.beta, tokens.prompt_ids, tokens.response_ids)
        largest = max(largest, float((plain - torch.tensor(one.process_rewards)).abs().max()))
    print(
        f"check: transformers in float32 differs by at most {largest:.2e} on {len(encoded)} responses ({config.dtype})"
    )
    if config.dtype == "float32" and not largest <= TOLERANCE:
        raise RunError(f"{args.prm}: a reward differs from transformers' by {largest:.2e}, more than {TOLERANCE:g}")
