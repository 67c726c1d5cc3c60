"""What is decided without computer algebra; the oracle is exact arithmetic on the numbers the strings were made of."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_megatron.verify.compare import quick_equal
from prime_megatron.verify.normalize import normalize, plain_number, without_units
from prime_megatron.verify.units import PLAIN

SAME = [
    ("1234", "1,234"),
    ("1234567", "1,234,567"),
    ("1234", "1{,}234"),
    ("9,\\!000,\\!000", "9000000"),
    ("10000", "10\\,000"),
    ("18", "18.0"),
    ("18.90", "18.9"),
    ("0.5", ".5"),
    ("5", "5."),
    ("-3", "\u22123"),
    ("18", "$18$"),
    ("18", "\\$18"),
    ("\\$15.17", "15.17"),
    ("\\frac{11}{2}", "\\dfrac{11}{2}"),
    ("\\frac{11}{2}", "\\tfrac{11}2"),
    ("\\frac12", "\\frac{1}{2}"),
    ("\\frac 79", "7/9"),
    ("\\frac{1}{2}", "0.5"),
    ("1\\frac{4}{5}", "\\frac{9}{5}"),
    ("5.5", "5 1/2"),
    ("-\\frac{35}{9}", "\\frac{-35}{9}"),
    ("1/3", "0.333333"),
    ("1/12", "0.083333"),
    ("50\\%", "50"),
    ("50\\%", "0.5"),
    ("0.5", "50%"),
    ("60^\\circ", "60"),
    ("60^{\\circ}", "60\u00b0"),
    ("20\\text{ miles}", "20"),
    ("18", "18 dollars"),
    ("428\\text{ square centimeters}", "428"),
    ("5", "5\\text{ cm}^2"),
    ("3\\sqrt{13}", "3 \\sqrt{13}"),
    ("3\\sqrt{13}", "3\u221a13"),
    ("\\sqrt3", "\\sqrt{3}"),
    ("x^{2}+1", "x^2 + 1"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
    ("\\text{even}", "Even"),
    ("\\text{(B)}", "B"),
    ("(E)", "\\text{E}"),
    ("4210_{5}", "4210_5"),
    ("4210_5", "4210"),
    ("(321)_4", "321_{4}"),
    ("111_{\\text{two}}", "7_{10}"),
    ("7000000", "7 million"),
    ("3 hours", "180 minutes"),
    ("8.25e21", "8.25 \\times 10^{21}"),
    ("8.25\\cdot 10^{-4}", "0.000825"),
    ("\\nicefrac{2}{9}", "\\sfrac29"),
]
DIFFERENT = [
    ("42", "43"),
    ("1/3", "0.33"),
    ("2/3", "0.67"),
    (".0000672", ".0000673"),
    ("0", "0.0000001"),
    ("1000000", "1000000.5"),
    ("1000000", "1000001"),
    ("11/2", "11"),
    ("0.5", "50"),
    ("18", "19 dollars"),
    ("\\text{(B)}", "C"),
    ("4210_5", "4210_6"),
    ("4210_5", "4211"),
    ("31", "31_6"),
    ("7", "7 million"),
    ("3 hours", "3 minutes"),
    ("9\\text{ kg}", "9\\text{ g}"),
    ("0.3", "0.3\\%"),
    ("8.25e21", "8.25 \\times 10^{20}"),
    ("3e-9", "5e-9"),
]
LEFT_OPEN = [
    ("12", "1 2"),  # not one number
    ("42", "4\u00b2"),  # a superscript is no digit
    ("42", "\uff14\uff12"),  # digits of another script
    ("42", "\u0664\u0662"),
    ("42", "42 or 43"),
    ("42", "42,43"),
    ("4243", "42\\text{43}"),
    ("2", "2x"),
    ("2x", "2"),
    ("3", "1 2"),
    ("1", "1/0"),
    ("x", "y"),
    ("(1,2)", "(2,1)"),
]


@pytest.mark.parametrize(("ground_truth", "answer"), SAME)
def test_same_value(ground_truth: str, answer: str) -> None:
    assert quick_equal(ground_truth, answer) is True


@pytest.mark.parametrize(("ground_truth", "answer"), DIFFERENT)
def test_another_value(ground_truth: str, answer: str) -> None:
    assert quick_equal(ground_truth, answer) is False


@pytest.mark.parametrize(("ground_truth", "answer"), LEFT_OPEN)
def test_left_to_computer_algebra(ground_truth: str, answer: str) -> None:
    assert quick_equal(ground_truth, answer) is None


def _spellings(numerator: int, decimals: int) -> list[str]:
    """Ways to write numerator / 10**decimals."""
    sign, digits = ("-" if numerator < 0 else ""), str(abs(numerator)).rjust(decimals + 1, "0")
    whole, part = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
    point = f".{part}" if part else ""
    plain = f"{sign}{whole}{point}"
    spellings = [plain, f"{sign}{int(whole):,}{point}", f"${plain}$", f" {plain} ", plain.replace("-", "\u2212")]
    spellings += [f"{plain}0" if part else f"{plain}.00", f"\\dfrac{{{numerator}}}{{{10**decimals}}}"]
    return spellings


@given(st.integers(-(10**9), 10**9), st.integers(0, 4), st.data())
def test_every_spelling_of_a_number_is_that_number(numerator: int, decimals: int, data: st.DataObject) -> None:
    spellings = _spellings(numerator, decimals)
    gold, given_ = data.draw(st.sampled_from(spellings)), data.draw(st.sampled_from(spellings))
    assert quick_equal(gold, given_) is True
    number = plain_number(normalize(gold))
    assert number is not None
    assert number.value == Fraction(numerator, 10**decimals)
    wrong = data.draw(st.sampled_from(_spellings(numerator + 1, decimals)))
    # One unit of at least 1e-4 apart: beyond any tolerance.
    assert quick_equal(gold, wrong) is False


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_decided_or_left_open(ground_truth: str, answer: str) -> None:
    assert quick_equal(ground_truth, answer) in (True, False, None)
    assert quick_equal(answer, answer) is True
    assert normalize(normalize(answer)) is not None


def test_units_are_only_units() -> None:
    assert without_units("20\\text{ miles}")[0] == "20"
    assert without_units("\\frac{1}{2}\\text{ of the pie}")[0] == "\\frac{1}{2}"
    for text in ("20 or so", "20 is wrong", "2x", "miles", "20\\text{ 30}", "5 plus one"):
        assert without_units(text) == (text, PLAIN)
