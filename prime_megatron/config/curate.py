"""Settings of `prime-megatron curate`, a section a stage; a stage that goes on after an interruption has the same."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from prime_megatron.config.base import Section

Share = float


class WordingConfig(Section):
    """How a problem becomes a prompt; {problem} stands for the problem's text."""

    math: str = "{problem}\n\nWrite the final answer inside \\boxed{}."
    """User message of ability math."""
    code: str = "{problem}\n\nAnswer with one Python program, in a block that opens with ```python and ends with ```."
    """User message of ability code."""
    exact: str = "{problem}\n\nWrite the final answer between <answer> and </answer>."
    """User message of every other ability."""
    system: str | None = None
    """System message before it; none: there is none."""


class ReadConfig(Section):
    """Published files to rows of one schema."""

    ability: Literal["math", "exact"] = "math"
    """Which verifier compares the answers of the forms plain, gsm8k and math."""
    question: str | None = None
    """Column of the question (form plain); none: the first of problem, question, prompt that is there."""
    answer: str | None = None
    """Column of the answer (form plain); none: the first of answer, ground_truth, expected_answer, final_answer,
    target, solution that is there."""
    without_truth: Literal["drop", "keep"] = "drop"
    """What becomes of a row without an answer: keep it for supervised data, which needs none."""
    without_solution: Literal["drop", "keep"] = "keep"
    """What becomes of a program's tests that no reference solution in Python 3 comes with: nothing proves them."""
    solutions_tried: PositiveInt = 3
    """Reference solutions of a code row that are run, the first that passes ends it."""
    max_tests: PositiveInt | None = None
    """Tests of a code row that are kept, the first ones; none: all."""


class RuleConfig(Section):
    """The rule filter; a rule that is off counts nothing."""

    figure: bool = True
    """Drop problems that lean on a figure that is not there."""
    proof: bool = True
    """Drop problems that ask for a proof."""
    box: bool = True
    """Drop rows whose solution has a box that is not closed or empty, or none although it is the answer's source."""
    choice: Literal["drop", "keep"] = "drop"
    """What becomes of multiple choice; keep: for the stage `choices`."""
    languages: tuple[str, ...] = ()
    """Keep questions in these languages alone (en, fr, de, es, pt, it, nl, pl, or a script: zh, ja, ko, ru, el, ar, he,
    hi, th); none: all."""


class DedupConfig(Section):
    """Near-duplicates: MinHash finds candidates, their shingles decide."""

    similarity: float = Field(default=0.75, gt=0.0, le=1.0)
    """Jaccard similarity of two problems' shingles from which the later one is a duplicate. Problems with other ground
    truths are none unless they have the same words; one word apart, with the same truth and numbers, they are one."""
    shingle: PositiveInt = 2
    """Words of a shingle."""
    permutations: PositiveInt = 128
    """Hash functions of MinHash."""
    bands: PositiveInt = 32
    """Into which a signature is cut; one equal band makes a candidate. Must divide permutations."""
    numbers: Literal["same", "any"] = "same"
    """same: problems with other numbers are other problems, however alike; any: numbers are words."""
    seed: NonNegativeInt = 1
    """Seed of MinHash."""


class DecontaminateConfig(Section):
    """Copies of held-out problems."""

    ngram: int = Field(default=13, ge=2, le=100)
    """Words in a row that a copy shares with a held-out problem."""
    shared: float = Field(default=0.6, ge=0.0, le=1.0)
    """Share of a held-out problem's runs of three words that a row with such an n-gram must have besides: instructions
    ("express your answer in the form ...") are common to many problems. 0: the n-gram alone is enough."""
    short_words: PositiveInt = 26
    """Held-out problems under so many words are compared as a whole, too: one changed word may leave no n-gram."""
    similarity: float = Field(default=0.85, gt=0.0, le=1.0)
    """1 - edits / words from which a short problem is a copy; one edit always is, in at least `least_words` words."""
    least_words: PositiveInt = 4
    """A shorter problem is a copy where all its words are equal."""


class AskConfig(Section):
    """How a model is asked in a stage."""

    temperature: NonNegativeFloat = 0.8
    """Of drawing; 0: greedy."""
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    """Nucleus of drawing."""
    max_tokens: PositiveInt = 4096
    """Of a response."""
    seed: NonNegativeInt = 0
    """Of the random streams."""
    block: PositiveInt = 256
    """Responses that are asked together and kept together."""
    max_failed: PositiveInt = 64
    """Requests that fail in a row, each after its retries, before the stage ends; what was answered is kept."""


class ChoicesConfig(Section):
    """Multiple choice to open questions."""

    ask: AskConfig = AskConfig(temperature=0.0, max_tokens=1024)
    """How the model is asked."""
    rounds: PositiveInt = 3
    """Times that one pass over a row is asked before it counts as unreadable; from the second on with a temperature."""
    retry_temperature: float = Field(default=0.7, gt=0.0, le=2.0)
    """Of the second and later rounds."""


class AttemptsConfig(Section):
    """Attempts at every problem, and which problems stay."""

    ask: AskConfig = AskConfig(max_tokens=16384)
    """How the models are asked."""
    n: PositiveInt = 5
    """Attempts of each model."""
    prompt: str = (
        "Solve the problem. If it cannot be solved as it is stated, because something is missing or contradicts "
        "itself, the answer is \\boxed{No solution}. Otherwise end with the final answer inside \\boxed{}.\n\n{problem}"
    )
    """User message of a problem of ability math; other abilities are asked with their own prompt."""
    min_answered: float = Field(default=0.6, ge=0.0, le=1.0)
    """Least share of attempts that came back at all; below it a row is dropped as unanswered."""
    max_no_solution: float = Field(default=0.5, ge=0.0, le=1.0)
    """A row is dropped as unsolvable where a larger share of the attempts that came back says so."""
    min_agreement: float = Field(default=0.4, ge=0.0, le=1.0)
    """Least share of the attempts that came back with one and the same answer."""
    min_right: float = Field(default=0.2, ge=0.0, le=1.0)
    """Least share of the attempts that came back that equals the reference."""
    max_right: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of it: below 1 problems that every attempt solves are dropped."""


class SftDataConfig(Section):
    """Supervised answers in the form of named actions."""

    ask: AskConfig = AskConfig(temperature=0.7)
    """How the model is asked."""
    n: PositiveInt = 1
    """Answers asked to each row; the first good one is kept."""
    check: Literal["full", "off"] = "full"
    """full: an answer that breaks the form is dropped; off: it is counted alone."""
    truth: Literal["reject", "ignore"] = "reject"
    """reject: a wrong answer is dropped where the row has a ground truth."""
    system: str | None = None
    """System message of the rows that are written; none: the one that was asked with. A row's own comes after it."""


class CurateConfig(Section):
    """The data stages before training: `prime-megatron curate STAGE`."""

    wording: WordingConfig = WordingConfig()
    """How a problem becomes a prompt."""
    read: ReadConfig = ReadConfig()
    """Published files to rows."""
    filter: RuleConfig = RuleConfig()
    """Rules."""
    dedup: DedupConfig = DedupConfig()
    """Near-duplicates."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Copies of held-out problems."""
    choices: ChoicesConfig = ChoicesConfig()
    """Multiple choice to open questions."""
    attempts: AttemptsConfig = AttemptsConfig()
    """Attempts and thresholds."""
    sft: SftDataConfig = SftDataConfig()
    """Supervised data."""
