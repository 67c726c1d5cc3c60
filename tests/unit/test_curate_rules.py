"""Rules on problems: cases that they speak of, and cases alike that they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_megatron.curate.choice_rule import choice
from prime_megatron.curate.figure_rule import figure
from prime_megatron.curate.language import language_of
from prime_megatron.curate.proof_rule import proof
from tests.support.curating import Ran, curated, write_rows

FIGURES = r"""
The picture shows 3 cubes.
In the figure, ABC is a triangle.|As shown in the diagram, find x.|See Figure 3.|Refer to Fig. 2.
The figure shows a circle.|In the figure below, find x.|Find the area of the shaded region in the picture.
[asy] draw((0,0)--(1,1)); [/asy] Find x.|A cube is shown below.|The graph below shows sales.
Find the area of the figure.|![](http://x/y.png) Find x.|What is the area of the region shown?|as pictured below
as shown in the figure on the right|The diagram shows a rectangle.|In diagram 2, find x.|In Figure $1$, AB=3.
Using the following picture, compute x.|Consider the drawing above.|The three figures below are alike.
the adjacent figure|The accompanying graph shows y=f(x).|<image> What is x?|as shown.
Given the figure, find x.|[IMAGE] Find x.
The figure consists of four squares.|A, B lie as depicted in the image below.|\includegraphics{a} Find x.
"""
NO_FIGURES = r"""
Help Tom figure out how many apples he has.|He figured it out.|Round to three significant figures.
a six-figure salary|She is a figure skater.|He buys action figures for $5.|a configuration of points
Find the image of 3 under f.|Find the area enclosed by the graph of y=x^2.
The figure formed by the points is a square. Find its area.|A plane figure is bounded by y=x and y=x^2.
a picture frame is 5 by 7|Draw a diagram and find x.|A Venn diagram has 3 circles.|historical figures
he hung three pictures on the wall|Figures of speech|They figure that it costs 5.|Figure it out: 2+2?
She drew 4 pictures and 3 drawings.|The sales figures for June were 300.
The image of the point (3,4) under rotation is P.|What is the probability of drawing 2 red balls?
She figured that each cake cost $1.|A map has a scale of 1:100.
"""
PROOFS = """
Prove that 2+2=4.|prove the inequality|Show that x>0.|Show, that x>0.|Give a proof of the theorem.|Prove: a=b
Disprove it.|Prove or disprove.|Find x, with proof.|Find all n. Prove your answer.|Demonstrate that f is even.
Show $x>0$.|Let x=2. Show why x>0.|Show by induction that n>0.|PROVE THAT n>0|Provide a rigorous proof.
"""
NO_PROOFS = """
How can she improve her score?|The bank approves loans.|waterproof bags cost $3
It was proven that 5 is prime. How many?|Fermat proved that. Find n.|She provides 5 apples.
Data show that 30% of people smoke.|A proverb has 10 words.|80 proof alcohol|He wants to prove himself.
records show that the train is late|He will proofread 12 pages.|an improvement of 5%
She will show the pictures that she took.|The table shows that 5 apples are left.|an approved list|disapprove
The show that she saw took 2 hours.|Tests prove that 3 of 5 pass.|The tags show $5.
a fireproof safe|The theorem's proof uses 5 lemmas. How many?|Studies clearly show that 3 of 5 sleep.
"""
CHOICES = r"""
2+2? a) 1 b) 2 c) 3 d) 4
What is 2+2? (A) 3 (B) 4 (C) 5 (D) 6|What is 2+2?@A. 3@B. 4@C. 5|What is 2+2? A: 3 B: 4 C: 5 D: 6
2+2? A) 3 B) 4 C) 5 D) 6|Find x. $\mathrm{(A)}\ 3 \qquad \mathrm{(B)}\ 4 \qquad \mathrm{(C)}\ 5$
x? $\textbf{(A) }3\qquad\textbf{(B) }4\qquad\textbf{(C) }5$|Find x. A. $1$ B. $2$ C. $3$ D. $4$
Then x is ( )@A、1 B、2 C、3 D、4|The value is [A] 1 [B] 2 [C] 3|x is A．1 B．2 C．3
The value is $\text{(A)}\ 1 \text{(B)}\ 2 \text{(C)}\ 3$
$(\mathrm {A}) \ 3 \qquad (\mathrm {B}) \ 4 \qquad (\mathrm {C})\ 5$|\textbf{A.} 1 \textbf{B.} 2 \textbf{C.} 3
What is 2+2? (a) 1 (b) 2 (c) 3 (d) 4|Choose:@A - red@B - blue@C - green|**A.** 3@**B.** 4@**C.** 5
2+2? (A)3(B)4(C)5(D)6|2+2? (A): 3 (B): 4 (C): 5
2+2? <b>A</b>) 3 <b>B</b>) 4 <b>C</b>) 5|2+2? Ⓐ 3 Ⓑ 4 Ⓒ 5
What is 2+2? Option A: 3, Option B: 4, Option C: 5|2+2? A） 3 B） 4 C） 5|2+2? (A.) 3 (B.) 4 (C.) 5
The answer is A.1 B.2 C.3 D.4|Compute: A:1 B:2 C:3|Which?@(A) yes@(B) no@(C) maybe
"""
NO_CHOICES = r"""
Two sides: a) find x b) find y c) find z d) find w
Points A, B, C and D lie on a circle.|The angles satisfy A:B:C = 1:2:3.|sin(A) + sin(B) + sin(C) = 2
(sin A) + (sin B) + (sin C)|P(A) = 0.5, P(B)=0.2, P(C)=0.3
A man walks from A. Then he goes to B. Then he goes to C. How far?|f(A) f(B) f(C)
(a) Find x. (b) Find y when x is 3? (c) Find z. (d) Find w.|Given point A. Through point B. And point C.
A: B: C = 2: 3: 4|(A) and (B) are sets|Students share $10 so that A : B = 2 : 3 and B : C = 4 : 5.
Let $A = (1,2)$, $B = (3,4)$ and $C = (5,6)$.|Ask A. Smith, B. Jones and C. Brown.|(1) 3 (2) 4 (3) 5
What is 3(A) + 4(B) + 5(C) in all?|What is $(A+B)(B+C)(C+A)$?|sets with $n(A)=3$ and $n(B)=4$, $n(C)=5$
[asy] label("A", A); @ A 3@ B 4@ C 5 [/asy] Find x.
"""


def cases(text: str) -> list[str]:
    return [case.replace("@", "\n") for line in text.strip().splitlines() for case in line.split("|") if case]


@pytest.mark.parametrize(
    ("rule", "speaks", "silent"),
    [(figure, FIGURES, NO_FIGURES), (proof, PROOFS, NO_PROOFS), (choice, CHOICES, NO_CHOICES)],
    ids=["figure", "proof", "choice"],
)
def test_rules_speak_where_they_should(rule, speaks: str, silent: str) -> None:
    assert [text for text in cases(speaks) if rule(text) is None] == []
    assert [(text, rule(text)) for text in cases(silent) if rule(text) is not None] == []


def test_languages_by_words_and_script() -> None:
    told = {
        "Combien de nombres sont dans la liste ?": "fr", "Какое число больше?": "ru", "求x的值": "zh",
        "How many apples are there?": "en", "¿Cuántos números hay en la lista?": "es", "$x+1$": None,
        "Compute $x$.": None, "Wie viele Zahlen sind in der Liste?": "de", "三角形ABCの面積を求めよ": "ja",
        "Pedro González has 5 apples and Ω is a set.": "en",
        "A shelf holds 3 books: 4 come, 5 come, 2 come, 1 come. How many books does it hold now?": "en",
    }  # fmt: skip
    assert {text: language_of(text) for text in told} == told


def test_counts_add_up_and_the_first_rule_drops(tmp_path: Path) -> None:
    problems = {
        "plain": "What is 3+4?", "proof": "Prove that 2 is even.", "figure": "See the figure below. Prove that x=1.",
        "choice": "2+2? (A) 3 (B) 4 (C) 5", "french": "Combien de pommes sont dans la liste ?",
    }  # fmt: skip
    rows = [curated(name, problem) for name, problem in problems.items()]
    rows.append(curated("box", "2+2?", solution="\\boxed{4"))
    rows.append(curated("code", "Print the figure of n lines. Prove yourself.", ability="code", solution="\\boxed{"))
    path = write_rows(tmp_path / "in.jsonl", rows)
    ran = Ran("filter", [path], tmp_path / "out.jsonl", "filter.languages=[en]")
    assert ran.why() == {
        "proof": "proof", "figure": "figure", "choice": "choice", "french": "language", "box": "box", "code": "figure",
    }  # fmt: skip
    assert [row["id"] for row in ran.kept] == ["plain"]
    assert ran.report["rules"]["proof"]["count"] == 2, "the figure's row asks for a proof, too"
    assert ran.report["rules"]["proof"]["examples"][0]["why"] == "says 'Prove'"
    loose = Ran("filter", [path], tmp_path / "loose.jsonl", "filter.choice=keep", "filter.figure=false")
    assert loose.why() == {"proof": "proof", "figure": "proof", "box": "box"}
    assert loose.report["rules"]["choice"]["count"] == 1


def test_bad_settings_and_rows_of_no_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "in.jsonl", [curated("a", "2+2?")])
    raw = write_rows(tmp_path / "raw.jsonl", [curated("a", "2+2?"), {"question": "2+2?", "answer": "4"}])
    twice = write_rows(tmp_path / "twice.jsonl", [curated("a", "2+2?"), curated("a", "3+3?")])
    for inputs, words, told in (
        ([path], ["filter.languages=[xx]"], "'xx' is not known"),
        ([path], ["filter.proofs=true"], "did you mean"),
        ([raw], [], f"{raw}, row 2: prompt is missing"),
        ([twice], [], f"{twice}, row 2: id 'a' is that of {twice}, row 1"),
        ([path, path], [], "named twice"),
    ):
        assert Ran("filter", inputs, tmp_path / "out.jsonl", *words).code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
    assert not (tmp_path / "out.jsonl.blocks").exists()
