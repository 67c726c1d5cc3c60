import logging
from concurrent.futures import Future

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.verify import Answer, Verdict, Verifiers, VerifyOptions, build_verifiers
from prime_megatron.verify.code import check
from prime_megatron.verify.exact import RuleVerifier


def test_scores_in_order() -> None:
    with build_verifiers(VerifyOptions(num_workers=1, timeout_s=30.0)) as verifiers:
        answers = [
            Answer("math", "\\boxed{b+a}", "a+b"),  # the slow one first
            Answer("exact", "<answer>7</answer>", "7"),
            Answer("math", "\\boxed{2}", "3"),
            Answer("exact", "seven", "7"),
            Answer("exact", "\\boxed{the  cat}", " the cat "),
            Answer("exact", "\\boxed{The cat}", "the cat"),
        ]
        verdicts = verifiers.score(answers)
        assert [v.verdict for v in verdicts] == ["correct", "correct", "wrong", "no_answer", "correct", "wrong"]
        assert [v.score for v in verdicts] == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
        assert all(verdict.reason for verdict in verdicts)
        assert verifiers.score([]) == []


@pytest.mark.parametrize(
    ("ability", "message"),
    [
        ("mth", "unknown ability 'mth' (known: code, exact, math); did you mean 'math'?"),
        ("poetry", "unknown ability 'poetry' (known: code, exact, math)"),
        ("", "unknown ability '' (known: code, exact, math)"),
    ],
)
def test_an_unknown_ability_is_named(ability: str, message: str) -> None:
    with build_verifiers() as verifiers:
        with pytest.raises(InputError) as caught:
            verifiers.submit(Answer(ability, "", ""))
        assert str(caught.value) == message
        # Nothing is scored when one row of a batch cannot be.
        with pytest.raises(InputError):
            verifiers.score([Answer("exact", "", ""), Answer(ability, "", "")])


def test_code_is_refused_by_name_where_the_kernel_cannot_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "look", lambda: check.Kernel(landlock=0, seccomp=True))
    with build_verifiers() as verifiers, pytest.raises(InputError, match=r"'code': this kernel lacks Landlock"):
        verifiers.require("code")
    with build_verifiers(VerifyOptions(code=CodeConfig(jail="none"))) as verifiers:
        assert verifiers.require("code") is not None


def test_the_first_failure_of_a_kind_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def half(response: str, ground_truth: str) -> Verdict:
        if response == "boom":
            raise RuntimeError("no rule for this")
        return Verdict(0.5, "partial", f"{response} of {ground_truth}")

    with Verifiers({"sorting": RuleVerifier(half)}) as verifiers, caplog.at_level(logging.WARNING):
        verdicts = verifiers.score([Answer("sorting", response, "4") for response in ("3", "boom", "boom")])
    failed = Verdict(0.0, "error", "RuntimeError: no rule for this")
    assert verdicts == [Verdict(0.5, "partial", "3 of 4"), failed, failed]
    assert caplog.text.count("no rule for this") == 1


def test_submit_is_asynchronous() -> None:
    pending: list[Future[Verdict]] = []

    class Later:
        closed = False

        def submit(self, answer: Answer) -> "Future[Verdict]":
            pending.append(Future())
            return pending[-1]

        def close(self) -> None:
            self.closed = True

    later = Later()
    with Verifiers({"later": later}) as verifiers:
        future = verifiers.submit(Answer("later", "", ""))
        assert not future.done()
        pending[0].set_result(Verdict(1.0, "correct", "now"))
        assert future.result().score == 1.0
    assert later.closed


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_lies_between_0_and_1(score: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        Verdict(score, "correct", "")


def test_a_verdict_is_one_of_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'right' is none of correct, wrong"):
        Verdict(1.0, "right", "")


@pytest.mark.parametrize(
    "options", [{"num_workers": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"memory_bytes": 1}]
)
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        VerifyOptions(**options)  # type: ignore[arg-type]


def test_an_answer_that_equals_any_of_several_truths_is_right() -> None:
    with build_verifiers() as verifiers:
        answers = [
            Answer("exact", "\\boxed{b}", "a", other_truths=("b", "c")),
            Answer("exact", "\\boxed{a}", "a", other_truths=("b",)),
            Answer("exact", "\\boxed{d}", "a", other_truths=("b",)),
            Answer("math", "\\boxed{0.5}", "7", other_truths=("\\frac{1}{2}",)),
        ]
        assert [(v.score, v.verdict) for v in verifiers.score(answers)] == [
            (1.0, "correct"), (1.0, "correct"), (0.0, "wrong"), (1.0, "correct"),
        ]  # fmt: skip
