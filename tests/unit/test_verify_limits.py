import pytest

from prime_megatron.verify.limits import nesting, refuse, tower_height


@pytest.mark.parametrize(
    ("text", "height"),
    [
        ("x", 0),
        ("x^2", 1),
        ("x^2+y^3", 1),
        ("x^{2}y^{3}", 1),
        ("x^{2^3}", 2),
        ("x^2^3", 2),
        ("x^{2}^{3}", 2),
        ("9^9^9^9", 3),
        ("9^{9^{9^9}}", 3),
        ("9^(9^(9^9))", 3),
        ("(x^2)^3", 1),
        ("\\frac{x^2}{y^{2}}", 1),
        ("2^{a+b^{c}}", 2),
        ("10^ { 10 ^ { 10 } }", 2),
        ("^", 1),
        ("", 0),
    ],
)
def test_tower_height(text: str, height: int) -> None:
    assert tower_height(text) == height


@pytest.mark.parametrize(
    ("answer", "ground_truth", "part"),
    [
        ("9^{9^{9^9}}", "42", "stacked exponents"),
        ("9^9^9^9", "42", "stacked exponents"),
        ("10^{10^{10}}", "42", "stacked exponents"),
        ("10^{10000000000}", "42", "exponent of more"),
        ("10^(10000000000)", "42", "exponent of more"),
        ("(((9!)!)!)!", "42", "stacked factorials"),
        ("100000!", "42", "factorial or binomial"),
        ("\\binom{1000000}{500000}", "42", "factorial or binomial"),
        ("1000000 \\choose 500000", "42", "factorial or binomial"),
        ("\\frac{1}{" * 30 + "2" + "}" * 30, "42", "nested"),
        ("(" * 100 + "42" + ")" * 100, "42", "nested"),
        ("9" * 100, "42", "digits"),
        ("1+" * 300 + "1", "42", "characters"),
        ("x" * 1_000_000, "42", "1000000 characters"),
        ("42\x00", "42", "NUL"),
        ("41 \\fbox{42}", "42", "second box"),
        ("42 43", "85", "side by side"),
        ("42\\text{43}", "42", "side by side"),
    ],
)
def test_refused(answer: str, ground_truth: str, part: str) -> None:
    reason = refuse(answer, ground_truth)
    assert reason is not None
    assert part in reason


@pytest.mark.parametrize(
    ("answer", "ground_truth"),
    [
        ("2^{4950}", "2^{4950}-1"),
        ("2^{2^{10}}", "2^{2^{10}}+1"),  # a tower where the ground truth has one
        ("10!", "3628800"),
        ("a \\!= 2,\\!000", "2000"),
        ("\\binom{10}{5}", "252"),
        ("\\begin{pmatrix} \\frac{5}{6} & \\frac{1}{3} \\\\ \\frac{1}{3} & \\frac{1}{3} \\end{pmatrix}", "1"),
        ("x^8+x^7+x^6+x^5+x^4+x^3+x^2+x+1", "1"),
    ],
)
def test_passed(answer: str, ground_truth: str) -> None:
    assert refuse(answer, ground_truth) is None


def test_nesting_counts_every_bracket() -> None:
    assert nesting("([{x}])") == 3
    assert nesting(")))(") == 1
