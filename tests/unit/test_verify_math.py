"""The whole math route, math-verify's process included."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prime_megatron.verify.answer import Answer, Verdict
from prime_megatron.verify.math import MathVerifier, final_ground_truth

COMPUTED = [  # (ground truth, answer, is it right), hardly one of them decided by strings
    ("x^2+2x+1", "(x+1)^2", True),
    ("a+b", "b + a", True),
    ("\\cot x", "\\frac{\\cos x}{\\sin x}", True),
    ("2", "\\sqrt{4}", True),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
    ("1,2", "2, 1", True),
    ("\\{1,2\\}", "2,1", True),
    ("1\\pm\\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}", True),
    ("(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty) \\cup (-\\infty, 2)", True),
    ("x=5", "5", True),
    ("2\\pi", "\u03c0+\u03c0", True),
    ("10\\%", "10 percent", True),
    (".0000672", "6.72\\times 10^{-5}", True),
    ("\\begin{pmatrix} 1/2 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 0.5 \\\\ 2 \\end{pmatrix}", True),
    ("42", "42 or 43", False),
    ("42", "42\\text{ or }43", False),
    ("42", "42, 43", False),
    ("42", "42;43", False),
    ("(1,2)", "(2,1)", False),
    ("[1,2]", "(1,2)", False),
    ("x", "y", False),
    (".0000672", "6.73\\times 10^{-5}", False),
    ("42", "\uff14\uff12", False),
    ("42", "4\u00b2", False),
    ("42", "\\frac{", False),
    ("42", "\ud800", False),
    ("42", "\\text{I do not know}", False),
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(num_workers=1, timeout_s=30.0, memory_bytes=2**30)
    yield verifier
    verifier.close()


def boxed(answer: str, ground_truth: str) -> Answer:
    return Answer("math", f"Therefore $\\boxed{{{answer}}}$.", ground_truth)


@pytest.mark.parametrize(("ground_truth", "answer", "right"), COMPUTED)
def test_computed(verifier: MathVerifier, ground_truth: str, answer: str, right: bool) -> None:
    if answer != "\\frac{":  # no box closes around an open brace; straight to the worker
        verdict = verifier.submit(boxed(answer, ground_truth)).result()
    else:
        verdict = verifier.pool.submit({"answer": answer, "ground_truth": ground_truth}).result()
    assert (verdict.score, verdict.verdict) == ((1.0, "correct") if right else (0.0, "wrong"))


@pytest.mark.parametrize(
    ("response", "ground_truth", "verdict"),
    [
        ("\\boxed{42}", "42", "correct"),
        ("\\boxed{1,234}", "Some steps <<2*617=1234>>\n#### 1234", "correct"),
        ("\\boxed{1234}", "#### 1,234", "correct"),
        ("\\boxed{7}", "it is $\\boxed{7}$", "correct"),
        ("\\boxed{41}", "42", "wrong"),
        ("42", "42", "no_answer"),
        ("\\boxed{42", "42", "no_answer"),
        ("\\boxed{42} so \\boxed{42", "42", "no_answer"),
        ("\\boxed{}", "42", "no_answer"),
        ("\\boxed{42}", " ", "error"),
        ("\\boxed{42}", "steps ####", "error"),
        ("\\boxed{9^{9^{9^9}}}", "42", "refused"),
        ("\\boxed{" + "9" * 1_000_000 + "}", "42", "refused"),
        ("\\boxed{" + " " * 1_000_000 + "x y" * 400_000 + "}", "42", "refused"),
        ("\\boxed{" + "1 + " * 300 + "1}", "1+" * 300 + "1", "refused"),  # too long even for string work
        ("\\boxed{9^{9^{9^9}}}", "9^{9^{9^9}}", "correct"),
    ],
)
def test_decided_at_once(response: str, ground_truth: str, verdict: str) -> None:
    verifier = MathVerifier(num_workers=1, timeout_s=1.0, memory_bytes=2**30)
    future = verifier.submit(Answer("math", response, ground_truth))
    assert future.done()
    assert future.result().verdict == verdict
    assert future.result().score == (1.0 if verdict == "correct" else 0.0)
    assert verifier.pool.pids() == []
    verifier.close()


def test_ground_truth_formats() -> None:
    assert final_ground_truth(" \\frac{1}{2} ") == "\\frac{1}{2}"
    assert final_ground_truth("a\n#### 5\n") == "5"
    assert final_ground_truth("so \\boxed{5}.") == "5"


def test_no_answer_is_evaluated(verifier: MathVerifier, tmp_path: Path) -> None:
    target = tmp_path / "written"
    payloads = [
        f"__import__('os').system('touch {target}')",
        f"open('{target}','w').write('1')",
        f"(lambda: open('{target}','w'))()",
        f"\\text{{open('{target}','w').write('1')}}",
        f"\\sin(__import__('pathlib').Path('{target}').touch())",
        f"42; import os; os.mknod('{target}')",
        "\\input{/etc/passwd}",
        f"\\immediate\\write18{{touch {target}}}",
    ]
    verdicts = [verifier.pool.submit({"answer": payload, "ground_truth": "42"}).result() for payload in payloads]
    assert [verdict.score for verdict in verdicts] == [0.0] * len(payloads)
    assert not target.exists()


def test_from_a_thread_that_may_not_use_sigalrm(verifier: MathVerifier) -> None:
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(verifier.submit(boxed("b+a", "a+b")).result()))
    thread.start()
    thread.join(60)
    assert [verdict.verdict for verdict in found] == ["correct"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_process_inherits_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("RANK", "3")
    verifier = MathVerifier(num_workers=1, timeout_s=30.0, memory_bytes=2**30)
    with open(tmp_path / "ours", "w") as ours:
        os.set_inheritable(ours.fileno(), True)
        assert verifier.pool.submit({"answer": "b+a", "ground_truth": "a+b"}).result().verdict == "correct"
        (pid,) = verifier.pool.pids()
        process = Path(f"/proc/{pid}")
        environment = (process / "environ").read_bytes()
        assert b"very-secret" not in environment
        assert b"RANK=" not in environment
        assert "torch" not in (process / "maps").read_text()
        open_files = {os.readlink(link) for link in (process / "fd").iterdir()}
        assert str(tmp_path / "ours") not in open_files
        limits = {line[:25].strip(): line[25:].split()[0] for line in (process / "limits").read_text().splitlines()}
        assert limits["Max file size"] == "0"
        assert limits["Max processes"] == "0"
        assert limits["Max address space"] == str(2**30)
    verifier.close()
    assert not process.exists()
