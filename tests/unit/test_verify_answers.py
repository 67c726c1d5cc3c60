"""Verdicts on ways to write an answer, kind by kind, with computer algebra and without a process of its own.

The right value of each pair is the mathematician's: made by hand, not by the code.
"""

import pytest

from prime_megatron.verify.answer import Verdict
from prime_megatron.verify.math import decide
from prime_megatron.verify.symbolic import MathGrader

# (ground truth, answers that are right, answers that are wrong)
UNITS = [
    ("15\\text{ cm}", ["15", "15\\,\\mathrm{cm}", "0.15\\text{ m}", "150 mm"], ["15\\text{ m}", "15\\text{ kg}"]),
    ("4\\text{ hours}", ["4", "4 hr", "240\\text{ minutes}"], ["4\\text{ minutes}", "4\\text{ days}"]),
    ("70\\text{ km/h}", ["70", "70\\text{ kilometers per hour}"], ["70\\text{ m/s}", "70\\text{ km}"]),
    ("9\\text{ cm}^2", ["9\\text{ square centimeters}", "9\\text{ cm}^2"], ["9\\text{ cm}^3", "9\\text{ m}^2"]),
    ("6\\pi", ["6\\pi\\text{ cm}^2", "6\\pi\\ \\text{square inches}"], ["6\\pi\\text{ or so}"]),
    ("\\$0.75", ["75 cents", "0.75", "0.75\\text{ dollars}"], ["75\\text{ dollars}", "0.75\\text{ cents}"]),
    ("-8^\\circ\\text{C}", ["-8", "-8^\\circ\\text{C}"], ["-8^\\circ\\text{F}", "8"]),
    ("7\\text{ girls}", ["7"], ["7\\text{ boys}"]),
    ("31", ["31\\text{ ways}", "31 apples", "\\text{31}", "31~\\text{m}^3", "31\u5143"], ["31\\text{ tenths}"]),
]
MULTIPLES = [
    ("5000000", ["5\\text{ million}", "5 million dollars"], ["5", "5\\text{ thousand}"]),
    ("36", ["3 dozen", "36"], ["36\\text{ dozen}", "36\\text{ hundred}"]),
    ("2.7", ["27\\text{ tenths}"], ["27"]),
    ("0.4", ["40\\%", "40\\text{ percent}"], ["0.4\\%", "4\\%"]),
    ("60\\%", ["60", "0.6", "60 percent", "\\frac{3}{5}"], ["6", "0.06", "60\\text{ percent more}"]),
    ("8\\frac{1}{2}\\%", ["8.5\\%", "8.5", "0.085"], ["0.85"]),
]
BASES = [
    ("212_3", ["212", "(212)_3", "212_{3}", "23_{10}"], ["212_4", "211_3", "23"]),
    ("2F_{16}", ["2f_{16}", "47_{10}"], ["2E_{16}"]),
    ("57", ["57_{10}"], ["57_8"]),
    ("(9)_{10}", ["9"], ["8"]),
]
CHAINS = [
    (
        "24",
        ["x=24", "24=x", "4!=24", "\\text{Total}=24", "S_{7}=24", "P(B)=24", "n=4\\cdot 6=24", "a+b=24"],
        ["0=24", "23=24", "24=23", "x^2=24", "2x=24", "x+1=24", "x=23=24", "23 \\approx 24", "23.9 \\approx 24",
         "x \\ne 24", "x>24", "20<x<28", "23 \\Rightarrow 24", "24 \\to 25"],
    ),
    ("9\\pi", ["9\\pi \\approx 28.27", "A = 9\\pi"], ["28.27"]),
    ("y=3x-2", ["3x-2", "3x-y=2"], ["y=3x+2", "3x"]),
    ("z^3-1", ["g(z)=z^3-1"], ["z^3=1"]),
    ("x=8", ["8", "x=8"], ["y=8", "x=-8"]),
]  # fmt: skip
HEDGES = [
    (
        "24",
        ["\\text{The answer is }24", "\\text{about }24", "\\text{Let } x = 24"],
        ["24\\text{ or }25", "24\\text{ or something}", "24, 25", "24; 25", "24, 24", "24\\text{ is wrong}",
         "\\text{not }24", "\\text{at least }24", "\\text{negative }24", "24 \\text{ (perhaps } 25\\text{)}",
         "24 (perhaps 25)", "24 plus one", "24\\text{ squared}", "24 \\pm 1", "24x", "24_9", "24:30", "f(24)", "24-25",
         "24\\text{ k}", "24?\\ 25", "24\\ldots 25", "\\text{more than }24", "24\\text{ to }25", "24!", "24^2"],
    ),
]  # fmt: skip
CONTAINERS = [
    ("\\{3,8\\}", ["8, 3", "\\{8,3\\}", "8\\text{ and }3", "\\{3\\}\\cup\\{8\\}"], ["(3,8)", "[3,8]", "3", "3,8,9"]),
    ("(3,8)", ["(3, 8)", "x=3, y=8", "y=8,\\ x=3", "\\langle 3,8\\rangle", "3,8"], ["(8,3)", "\\{3,8\\}", "x=8, y=3"]),
    ("[3,8]", ["\\left[3,8\\right]", "3\\le x\\le 8"], ["(3,8)", "\\{3,8\\}", "[3,8)"]),
    ("3, 8", ["x_1=8, x_2=3", "x=3\\text{ or }x=8", "\\{3,8\\}"], ["(3,8)", "3", "3,9"]),
    ("\\pm 6", ["6, -6", "\\{-6,6\\}", "+/- 6"], ["6", "-6"]),
    ("6", ["\\{6\\}", "(6)"], ["\\pm 6", "6, 7"]),
    ("\\{(1,5),(2,7)\\}", ["(2,7),(1,5)"], ["(5,1),(2,7)", "(1,5)"]),
    ("\\begin{pmatrix}1&0\\\\5&2\\end{pmatrix}", ["\\begin{bmatrix}1&0\\\\5&2\\end{bmatrix}", "[[1,0],[5,2]]"],
     ["\\begin{pmatrix}1&5\\\\0&2\\end{pmatrix}", "[[1,0],[5,3]]"]),
    ("\\begin{pmatrix}1\\\\5\\end{pmatrix}", ["(1,5)"], ["(5,1)"]),
    ("\\emptyset", ["\\varnothing", "\\{\\}"], ["0", "\\{0\\}"]),
]  # fmt: skip
REGIONS = [
    ("(2,9.5)", ["2<x<9.5", "9.5 > t > 2", "\\{x \\mid 2<x<9.5\\}"], ["2\\le x<9.5", "2<x<9", "x>2"]),
    ("[\\sqrt{7},\\infty)", ["m \\ge \\sqrt{7}", "\\sqrt7 \\leq x"], ["m > \\sqrt{7}", "m \\ge 7"]),
    ("(-\\infty,2)\\cup(6,\\infty)", ["x<2 \\text{ or } x>6", "(6,\\infty)\\cup(-\\infty,2)"],
     ["2<x<6", "x<2", "x\\le 2 \\text{ or } x>6"]),
    ("x \\ne 4", ["(-\\infty,4)\\cup(4,\\infty)", "\\mathbb{R}\\setminus\\{4\\}"], ["x \\ne 5", "(-\\infty,4)"]),
    ("\\mathbb{R}", ["(-\\infty,\\infty)", "\\text{all real numbers}"], ["(0,\\infty)"]),
    ("x>5", ["5<x", "(5,\\infty)"], ["x\\ge 5", "x<5"]),
]  # fmt: skip
CHOICES = [
    ("B", ["\\text{(B)}", "b", "B.", "B. 17", "\\textbf{(B)}\\ 17", "\\text{B: the second}", "\\mathrm{(B)}"],
     ["C", "(C) 17", "(B) or (C)", "(B) is wrong", "B, C", "(B)+1", "AB"]),
    ("D. 12", ["D", "12", "(D) 12"], ["A", "13", "D. 13"]),
    ("A, D", ["D, A", "AD", "A and D"], ["A, C", "A"]),
]  # fmt: skip
SPELLINGS = [
    ("\\frac{5}{9}", ["\\nicefrac{5}{9}", "\\sfrac{5}{9}", "0.\\overline{5}", "0.\\dot{5}", "5/9"], ["0.5", "0.56"]),
    ("\\frac{41}{330}", ["0.1\\overline{24}"], ["0.\\overline{124}"]),
    ("\\frac{\\sqrt{5}}{4}", ["sqrt(5)/4", "\u221a5/4", "\\frac{\u221a(5)}{4}"], ["\\sqrt{5/4}"]),
    ("y^6", ["y**6", "y\u2076"], ["6y"]),
    ("x\\le 7", ["x <= 7", "x \u2264 7"], ["x >= 7"]),
    ("(4,6)", ["\uff084\uff0c6\uff09"], ["\uff086\uff0c4\uff09"]),
    ("e^{9}", ["exp(9)"], ["e^{-9}"]),
    ("\\frac{\\pi}{3}", ["pi/3", "\u03c0/3"], ["pi/6"]),
    ("\\infty", ["oo", "+\\infty"], ["-\\infty", "99999"]),
    ("11", ["\\color{blue}{11}", "\\underline{11}", "\\boldsymbol{11}", "11\u200b", "\\(11\\)"], ["1"]),
    ("\\[11\\]", ["11"], ["12"]),
    ("Answer: 11", ["11"], ["12"]),
    ("\\overline{PQ}", ["PQ"], ["QR"]),
    ("3\\mathbf{i}-\\mathbf{j}", ["-\\mathbf{j}+3\\mathbf{i}"], ["3\\mathbf{j}-\\mathbf{i}"]),
    ("-1", ["e^{i\\pi}", "i^2"], ["i"]),
    ("\\frac{\\sqrt{3}}{2}", ["\\sin 60^\\circ", "\\cos(30^\\circ)"], ["\\sin 30^\\circ"]),
]
SIZES = [
    ("\\frac{1}{3^{60}}", ["3^{-60}"], ["\\frac{1}{3^{61}}", "0"]),
    ("\\frac{1}{900!}", ["1/900!"], ["\\frac{1}{902!}"]),
    ("e^{-35}", ["\\frac{1}{e^{35}}"], ["e^{-36}", "0"]),
    ("\\frac{y}{2^{70}}", ["2^{-70}y"], ["\\frac{y}{2^{71}}"]),
    ("3^{1500}+1", ["1+3^{1500}"], ["3^{1500}+2", "3^{1500}"]),
    ("0", ["\\sin \\pi"], ["10^{-11}", "2^{-50}"]),
    ("1", ["\\frac{2^{50}}{2^{50}}"], ["1-2^{-50}"]),
    ("7.1\\times 10^{-24}", ["7.1e-24", "71 \\cdot 10^{-25}"], ["7.2\\times 10^{-24}", "7.1\\times 10^{-23}"]),
    ("2.5e33", ["2.5 \\times 10^{33}", "2.5\\cdot10^{33}"], ["2.5 \\times 10^{32}", "2.6e33"]),
    ("2.5e500", ["25e499"], ["2.5e501"]),
]
WORDS = [
    ("\\text{Monday}", ["monday.", "Monday"], ["Sunday", "\\text{not Monday}", "\\text{Monday or Friday}"]),
    ("DEF", ["\\text{DEF}"], ["FED"]),
    ("uv", ["vu", "u v"], ["uw"]),
    ("3:8", ["6:16", "3 : 8"], ["8:3", "3:8:1"]),
    ("10:07", ["10:07"], ["10:08", "1:07"]),
]
KINDS = {
    "units": UNITS, "multiples": MULTIPLES, "bases": BASES, "chains": CHAINS, "hedges": HEDGES,
    "containers": CONTAINERS, "regions": REGIONS, "choices": CHOICES, "spellings": SPELLINGS, "sizes": SIZES,
    "words": WORDS,
}  # fmt: skip


@pytest.fixture(scope="module")
def grader() -> MathGrader:
    return MathGrader()


def score(grader: MathGrader, ground_truth: str, answer: str, before: str = "") -> float:
    decision = decide(f"{before}\\boxed{{{answer}}}", ground_truth)
    if isinstance(decision, Verdict):
        return decision.score
    return grader.grade({"answer": decision[0], "ground_truth": decision[1]})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_ways_to_write_an_answer(grader: MathGrader, kind: str) -> None:
    refused, accepted = [], []
    for ground_truth, right, wrong in KINDS[kind]:
        refused += [(ground_truth, answer) for answer in right if score(grader, ground_truth, answer) != 1.0]
        accepted += [(ground_truth, answer) for answer in wrong if score(grader, ground_truth, answer) != 0.0]
    assert (refused, accepted) == ([], [])


@pytest.mark.parametrize("answer", ["nan", "NaN", "\\text{nan}", "-nan"])
def test_nan_is_no_answer(grader: MathGrader, answer: str) -> None:
    assert score(grader, answer, answer) == 0.0
    assert score(grader, "5", answer) == 0.0


def test_a_base_that_the_truth_leaves_out_is_that_of_the_question(grader: MathGrader) -> None:
    assert score(grader, "143", "143_6", before="In base 6 the sum is ") == 1.0
    assert score(grader, "143", "143_6", before="the base six digits are ") == 1.0
    assert score(grader, "143", "143_6", before="$35_6 + 104_6$ is ") == 1.0
    assert score(grader, "143", "143_6", before="Therefore ") == 0.0
    assert score(grader, "143", "142_6", before="In base 6 the sum is ") == 0.0
