"""What a run would refuse about its data, told before any process is started: the first row of every file, whether a
row is left to use, whether a response fits into the model. Tokenizer and config.json are read, no weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from prime_megatron.config import Granularity, PrmConfig, SftConfig, StageConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.files import data_files
from prime_megatron.data.rows import PromptRow, prompt_rows, sft_rows
from prime_megatron.errors import InputError
from prime_megatron.families.read import read_config
from prime_megatron.run.context import prompt_limit
from prime_megatron.step.plan import plan_step
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers

if TYPE_CHECKING:
    from prime_megatron.data.encode import Skip
    from prime_megatron.data.tokenizer import Tokenizer
    from prime_megatron.data.told import Telling
    from prime_megatron.types import Prompt


def check_data(config: TrainConfig | StageConfig, *, all_here: bool) -> list[str]:
    """Warnings about the data. Without `all_here` a data file that is missing is one of them, and a model folder or a
    tokenizer that is missing ends the check; imports torch where there is a tokenizer.

    Raises:
        InputError: a file that cannot be read, a first row that breaks the schema or has an unknown ability, no row
            left to use, a template that refuses it, a response limit beyond the model's positions.
    """
    if isinstance(config, PrmConfig):
        return _check_labelled(config, all_here=all_here)
    names = {"data.train": config.data.train}
    if isinstance(config, TrainConfig):
        names["data.eval"] = config.data.eval
    elif isinstance(config, SftConfig):
        names["data.held_out"] = config.data.held_out
    files: dict[str, list[str]] = {}
    warnings: list[str] = []
    for key, entries in names.items():
        absent = [] if all_here else [entry for entry in entries if not _there(entry)]
        warnings += [f"{key}: {entry} is not on this machine: not checked" for entry in absent]
        files[key] = data_files([entry for entry in entries if entry not in absent])
    _check_first_rows(config, files)
    folder = config.model if isinstance(config, StageConfig) else policy_folder_of(config)
    if not all_here and not (Path(folder) / "config.json").exists():
        return warnings
    if isinstance(config, TrainConfig):
        limit, short = prompt_limit(config, read_config(folder))
        warnings += [] if short is None else [short]
    else:
        limit, positions = config.data.max_tokens, read_config(folder).max_positions
        if limit > positions:
            warnings.append(
                f"data.max_tokens {limit} is more than the {positions} positions that {folder} was made for"
            )
    _check_usable(config, folder, files, limit, all_here=all_here)
    return warnings


def _check_labelled(config: PrmConfig, *, all_here: bool) -> list[str]:
    """As `check_data`: every row, for one of them may lack its outcome."""
    from prime_megatron.evaluate.responses import read_responses

    warnings = []
    for key, paths in (("data.train", config.data.train), ("data.held_out", config.data.held_out)):
        for path in paths:
            if all_here or Path(path).exists():
                read_responses(path, labelled=True)
            else:
                warnings.append(f"{key}: {path} is not on this machine: not checked")
    return warnings


def _check_first_rows(config: TrainConfig | StageConfig, files: dict[str, list[str]]) -> None:
    if isinstance(config, StageConfig):
        for file in chain.from_iterable(files.values()):
            next(sft_rows([file]))
        return
    with build_verifiers(VerifyOptions(code=config.verify.code), config.verify.custom) as verifiers:
        for file in (file for own in files.values() for file in own):
            _check_ability(next(prompt_rows([file])), config, verifiers)


def _check_usable(
    config: TrainConfig | StageConfig, folder: str, files: dict[str, list[str]], limit: int, *, all_here: bool
) -> None:
    """Raise InputError where the run would have no row to use; reads up to the first that it has."""
    from prime_megatron.data.chat import ChatOptions
    from prime_megatron.data.encode import encode_sft
    from prime_megatron.data.stream import check_usable
    from prime_megatron.data.tokenizer import VOCABULARY_FILES, load_tokenizer
    from prime_megatron.data.told import Telling

    if not all_here and not any((Path(folder) / name).is_file() for name in VOCABULARY_FILES):
        return
    trust = config.trust_remote_code if isinstance(config, StageConfig) else config.models.trust_remote_code
    options = ChatOptions(*config.data.template_options())
    tokenizer = load_tokenizer(folder, trust_remote_code=trust, options=options)
    if isinstance(config, StageConfig):
        for own in filter(None, files.values()):
            rows = sft_rows(own)
            check_usable(rows, lambda row: encode_sft(row, tokenizer, "", 0, limit), f"data.max_tokens {limit}")
        return
    if config.prm.granularity is Granularity.step:
        tokenizer.step_end_table(config.prm.step_delimiter, read_config(folder).vocab)
    for other, head in {model.folder: model.value_head for model in plan_step(config).models}.items():
        if other != folder:
            _check_same_tokens(tokenizer, other, value_head=head)
    for key, own in files.items():
        telling = Telling.of(config) if key == "data.train" else None
        if own:
            prompts = _used_rows(key, own, config)
            encode = functools.partial(_encoded, tokenizer=tokenizer, limit=limit, telling=telling)
            check_usable(prompts, encode, f"data.max_prompt_tokens {limit}")


def _encoded(row: PromptRow, *, tokenizer: Tokenizer, limit: int, telling: Telling | None) -> Prompt | Skip:
    from prime_megatron.data.encode import encode_prompt

    return encode_prompt(row, tokenizer, "", 0, limit, telling)


def _check_same_tokens(tokenizer: Tokenizer, other: str, *, value_head: bool) -> None:
    """Every model reads the policy's token ids. Raises InputError for a folder in which one means something else."""
    from prime_megatron.data.tokenizer import VOCABULARY_FILES, load_tokenizer

    if not (Path(other) / "config.json").is_file():
        return
    own, size = tokenizer.hf.get_vocab(), read_config(other, value_head=value_head).vocab
    if max(own.values()) >= size:
        raise InputError(
            f"{other}/config.json: vocab_size {size} is too small for the token ids of {tokenizer.folder}, which all "
            "models read; use a model of the same tokenizer"
        )
    if any((Path(other) / name).is_file() for name in VOCABULARY_FILES):
        theirs = load_tokenizer(other).hf.get_vocab()
        texts = {id_: text for text, id_ in theirs.items()}
        differ = [text for text, id_ in own.items() if theirs.get(text, id_) != id_ or texts.get(id_, text) != text]
        if differ:
            raise InputError(
                f"{other}: its tokenizer is not that of {tokenizer.folder}, whose token ids all models read: "
                f"{own[differ[0]]} is {texts.get(own[differ[0]])!r} there and {differ[0]!r} here ({len(differ)} tokens "
                "differ); "
                "use a model of the same tokenizer"
            )


def _used_rows(key: str, files: Sequence[str], config: TrainConfig) -> Iterator[PromptRow]:
    """Rows that data.skip_abilities leaves. Raises InputError, at the end, where there is none."""
    left = False
    for row in prompt_rows(files, config.data.system_prompt):
        if row.ability not in config.data.skip_abilities:
            left = True
            yield row
    if not left:
        raise InputError(f"{key}: {', '.join(files)}: no row is left to use (data.skip_abilities)")


def _check_ability(row: PromptRow, config: TrainConfig, verifiers: Verifiers) -> None:
    """What this machine cannot verify (programs without a jail) another one may: the run tells."""
    if row.ability in config.data.skip_abilities or row.ability in verifiers.unavailable:
        return
    try:
        verifiers.require(row.ability)
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from None


def _there(entry: str) -> bool:
    """Whether a data entry names something on this machine; a pattern does where a file matches."""
    try:
        return all(Path(file).exists() for file in data_files([entry]))
    except InputError:
        return Path(entry).exists()
