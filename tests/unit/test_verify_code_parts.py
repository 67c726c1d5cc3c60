"""The parts of code rewards that need no jail: extraction, ground truths, comparison, scores, values, the filter."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from prime_megatron.verify.code.extract import extract_code
from prime_megatron.verify.code.jail import seccomp, values
from prime_megatron.verify.code.jail.attempt import AssertTest, CallTest, ScriptTest
from prime_megatron.verify.code.jail.compare import same_output, same_result
from prime_megatron.verify.code.jail.score import run_as_needed, score_of
from prime_megatron.verify.code.jail.syscalls import ALLOWED, CONDITIONAL
from prime_megatron.verify.code.jail.truth import parse_truth


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("no code", None),
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\ntext\n```python\nb\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),  # a labelled block wins over a later unlabelled one
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```cpp\na\n```", None),
        ("```text\na\n```\n```py\nb\n```\n```json\nc\n```", "b\n"),
        ("```Python3\na\n```", "a\n"),
        ("```python\na", None),  # cut off
        ("```python\na\n```\n```python\nb", "a\n"),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("1. first\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ("```python title=x\na\n```", "a\n"),
        ("`python`\na", None),
        ("```python\n```", "\n"),
        ("```python\na\x00\ud800\n```", "a\x00\ud800\n"),
        ("", None),
    ],
)
def test_the_last_block_of_python_counts(response: str, code: str | None) -> None:
    assert extract_code(response) == code


def test_extraction_is_linear() -> None:
    assert extract_code("`" * 1_000_000) is None
    assert extract_code("```python\n" * 200_000) is None
    assert extract_code("```python\na\n```\n" * 100_000) == "a\n"
    assert extract_code("```" + "a" * 1_000_000 + "`") is None
    assert extract_code("```" + " a" * 500_000 + "`") is None
    assert extract_code("```python\n" + " " * 1_000_000 + "`\n" + "`" * 1_000_000 + "x\n```") is not None


def truth(**parts: Any) -> str:
    return json.dumps(parts)


def test_standard_input_and_output() -> None:
    assert parse_truth(truth(inputs=["1\n", ["2", "3"]], outputs=["a", ["b", "c"]])) == [
        ScriptTest("1\n", "a"),
        ScriptTest("2\n3", "b\nc"),
    ]


def test_calls_as_the_four_sources_write_them() -> None:
    lists = parse_truth(truth(inputs=[[[1, 2], 3], ["ab", 1]], outputs=[5, [6, 7]], fn_name="f"))
    assert lists == [CallTest("f", [[1, 2], 3], [5]), CallTest("f", ["ab", 1], [[6, 7]])]
    lines = parse_truth(truth(inputs=['[1, 2]\n"ab"\n', ""], outputs=["true", '"x"'], fn_name="Solution.f"))
    assert lines == [CallTest("Solution.f", [[1, 2], "ab"], [True]), CallTest("Solution.f", [], ["x"])]
    # Results in a list of one throughout may be wrapped, or be lists.
    wrapped = parse_truth(truth(inputs=[[1], [2]], outputs=[[5], [[6]]], fn_name="f"))
    assert wrapped == [CallTest("f", [1], [[5], 5]), CallTest("f", [2], [[[6]], [6]])]
    # Text beside a list of arguments is a result, and no JSON.
    assert parse_truth(truth(inputs=[[1]], outputs=["true"], fn_name="f")) == [CallTest("f", [1], ["true"])]
    assert parse_truth(truth(inputs=[[{"1": 2}, {"a": 3}]], outputs=[0], fn_name="f")) == [
        CallTest("f", [{1: 2}, {"a": 3}], [0])
    ]


def test_asserts() -> None:
    mbpp = parse_truth(truth(test_list=["assert f(1) == 2", "assert f(2) == 3"], test_imports=["import math"]))
    assert [test.source.splitlines()[-1] for test in mbpp if isinstance(test, AssertTest)] == [
        "assert f(1) == 2",
        "assert f(2) == 3",
    ]
    (check,) = parse_truth(truth(test="def check(candidate):\n    assert candidate(1) == 2\n", entry_point="f"))
    assert isinstance(check, AssertTest)
    assert check.aliases == {"candidate": "f", "f": "f"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "broken JSON"),
        ('{"inputs": [1', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('{"inputs": [NaN], "outputs": [1]}', "not a JSON number"),
        ("[]", "must be a JSON object"),
        ("7", "must be a JSON object"),
        ("{}", "needs lists"),
        (truth(inputs=[], outputs=[]), "no tests"),
        (truth(inputs=["1"], outputs=[]), "1 inputs and 0 outputs"),
        (truth(inputs="1", outputs="1"), "needs lists"),
        (truth(inputs=[1], outputs=["1"]), "input 1 must be text"),
        (truth(inputs=["1", "2"], outputs=["1", 2]), "output 2 must be text"),
        (truth(inputs=["1"], outputs=["1"], fn_name=3), "fn_name"),
        (truth(inputs=["1"], outputs=["1"], fn_name="f; import os"), "fn_name"),
        (truth(inputs=["[1"], outputs=["1"], fn_name="f"), "input 1 is not JSON"),
        (truth(inputs=["1"], outputs=["x"], fn_name="f"), "output 1 is not JSON"),
        (truth(inputs=[3], outputs=[3], fn_name="f"), "input 1 must be a list"),
        (truth(test_list=[]), "no tests"),
        (truth(test_list=["f(1) == 2"]), "asserts nothing"),
        (truth(test_list=["assert f(1"]), "not Python"),
        (truth(test="x = 1", entry_point="f"), "defines no check"),
    ],
)
def test_a_bad_ground_truth_says_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_truth(text)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1 2\n3\n", "1  2 3", True),
        ("", "\n", True),
        ("1", "", False),
        ("1 2", "12", False),
        ("yes", "YES", False),
        ("0.5", "0.50000000001", True),
        ("0.5", "0.500001", False),
        ("0.5", ".5", True),
        ("2.", "2.0", True),
        ("2", "2.0", False),
        ("2.0", "2", False),
        ("1.0e3", "1000.0", True),
        ("1e3", "1000.0", False),
        ("-0.0", "0.0", True),
        ("0.000001", "0.0", False),
        ("1_0.0", "10.0", False),
        ("nan.", "nan.", True),
        ("1.0.0", "1.0.0", True),
        ("1.0.0", "1.0.1", False),
        ("inf.0", "1.0", False),
        ("٣.٠", "3.0", False),
        ("1.0\x00", "1.0", False),
    ],
)
def test_output_is_compared_token_by_token(given: str, expected: str, same: bool) -> None:
    assert same_output(given, expected) is same


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (1, 1, True),
        (True, 1, False),
        (1, True, False),
        (False, 0, False),
        (None, None, True),
        (None, 0, False),
        ("1", 1, False),
        (2.0, 2, False),
        (2, 2.0, True),
        (True, 1.0, False),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        ([1, [2.0]], [1, [2.0]], True),
        ([1, True], [1, 1], False),
        ([1], [1, 2], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([], {}, False),
        ("", None, False),
    ],
)
def test_results_are_compared_by_jsons_types(given: Any, expected: Any, same: bool) -> None:
    assert same_result(given, expected) is same


def test_scores_and_early_stops() -> None:
    def score(outcomes: list[bool], kind: str) -> tuple[float, int]:
        seen = run_as_needed(len(outcomes), kind, lambda index: outcomes[index])
        return score_of(seen, len(outcomes), kind), len(seen)

    one_bad = [True] * 3 + [False] + [True] * 16
    assert score([True] * 20, "fraction") == score([True] * 20, "all") == score([True] * 20, "original") == (1.0, 20)
    assert score(one_bad, "fraction") == (19 / 20, 20)
    assert score(one_bad, "all") == (0.0, 4)
    assert score(one_bad, "original") == (0.9, 10)
    late = [True] * 15 + [False] + [True] * 4
    assert score(late, "original") == (1.0, 16)
    assert score(late, "all") == (0.0, 16)
    assert score([False, True, True], "original") == (2 / 3, 3)
    assert score([False], "fraction") == (0.0, 1)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(10**30), 1.5, -0.0, "a\ud800\n\x00☃", [], [1, [2, (3, {4})]], (), {1: "a", (2, 3): [None]},
        frozenset({1}), b"\x00\xff", bytearray(b"x"), 1 + 2j, range(1, 9, 2),
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value: Any) -> None:
    text = values.write(value, lambda _: 0)
    assert "\n" not in text
    back = values.read(text, lambda number: number)
    assert (back, type(back)) == (value, type(value))
    assert repr(back) == repr(value)


def test_a_subclass_is_not_its_type() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert values.write([Liar(3)], lambda _: 7) == '[{"ref": 7}]'
    assert values.read('[{"ref": 7}]', lambda number: number + 1) == [8]
    with pytest.raises(ValueError):
        values.read_json('[{"ref": 7}]')


def test_json_sees_tuples_as_lists_and_keys_as_text() -> None:
    assert values.read_json(values.write({1: (2, None), "a": {True: 1.5}}, lambda _: 0)) == {
        "1": [2, None],
        "a": {"true": 1.5},
    }
    for value in ({1}, float("nan"), {1: 0, "1": 0}, {(1, 2): 0}, b"x", 1j, range(3)):
        with pytest.raises(ValueError):
            values.read_json(values.write(value, lambda _: 0))


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "[1] [2]", "NaN", "Infinity", "[" * 100_000, '{"a": 1}', '{"tuple": 1}', '{"set": [[1]]}',
        '{"ref": "x"}', '{"deque": {"range": [0, 1000000000000, 1]}}', '{"tuple": {"range": [0, 1000000000000, 1]}}',
        '{"range": [1, 2, 0]}', '{"dict": [{"range": [0, 1000000000000, 1]}]}', '{"bytes": "zz"}', '{"float": "x"}',
        '{"complex": [1, 2, 3]}', "{}", '{"tuple": [], "set": []}', "9" * 5000,
    ],
)  # fmt: skip
def test_nonsense_is_refused_at_once(text: str) -> None:
    for read in (lambda: values.read(text, lambda number: number), lambda: values.read_json(text)):
        with pytest.raises(ValueError):
            read()


def test_what_nests_too_deep_cannot_be_written() -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(values.Unwritable):
        values.write(nested, lambda _: 0)


def decide(program: seccomp.Program, arch: int, number: int, *arguments: int) -> int:
    """What the kernel's machine for classic BPF makes of one system call: an interpreter of its own (bpf(4))."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *padded)
    code = program.for_pid(4242)
    at = accumulator = 0
    while True:
        kind, if_true, if_false, value = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if kind == 0x06:
            return value
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif kind == 0x54:
            accumulator &= value
        else:
            assert kind in (0x15, 0x35)
            met = accumulator == value if kind == 0x15 else accumulator >= value
            at += if_true if met else if_false


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_through_its_list_and_nothing_else(machine: str) -> None:
    column, arch = seccomp.MACHINES[machine]
    program = seccomp.assemble(column, arch)
    allowed = {numbers[column] for numbers in ALLOWED.values()} - {-1}
    conditional = {name: numbers[column] for name, numbers in CONDITIONAL.items()}
    assert len(program.code) // 8 < 4096
    for number in range(600):
        verdict = decide(program, arch, number, 1, 0xFFFF, 1)
        expected = ALLOW if number in allowed else ENOSYS if number >= 424 else EPERM
        assert verdict == expected, (machine, number)
    assert decide(program, arch ^ 1, min(allowed)) == KILL
    assert decide(program, arch, 0x40000000) == ENOSYS  # the x32 interface
    call = lambda name, *arguments: decide(program, arch, conditional[name], *arguments)  # noqa: E731
    thread = 0x3D0F00  # what pthread_create asks for
    assert call("clone", thread) == ALLOW
    for flags in (17, 0x4111, thread | 0x10000000, thread & ~0x10000, thread & ~0x100):
        assert call("clone", flags) == EPERM
    for name in ("kill", "tgkill"):
        assert call(name, 4242, 9) == ALLOW
        assert {call(name, pid, 9) for pid in (0, 1, 4241, 0xFFFFFFFF)} == {EPERM}
    assert call("prlimit64", 0, 7, 0, 1) == ALLOW
    assert {call("prlimit64", *given) for given in ((1, 7, 0), (0, 7, 1), (0, 7, 1 << 32))} == {EPERM}
    assert (call("fcntl", 3, 3), call("fcntl", 3, 8), call("fcntl", 3, 10)) == (ALLOW, EPERM, EPERM)
    assert (call("ioctl", 1, 0x5401), call("ioctl", 1, 0x5412)) == (ALLOW, EPERM)
    assert (call("prctl", 15), call("prctl", 1), call("prctl", 22)) == (ALLOW, EPERM, EPERM)


def test_no_dangerous_call_is_on_the_list() -> None:
    dangerous = """socket connect bind execve execveat fork vfork clone3 ptrace mount umount2 chroot setuid setgid
    memfd_create shmget process_vm_readv process_vm_writev pidfd_open pidfd_getfd pidfd_send_signal io_uring_setup bpf
    perf_event_open userfaultfd keyctl add_key unshare setns chmod fchmod fchmodat chown fchown truncate utimensat
    setxattr link linkat symlink symlinkat mkdir mknod setrlimit setsid setpgid tkill rt_sigqueueinfo personality
    landlock_restrict_self seccomp open_by_handle_at sched_setaffinity setpriority""".split()
    assert not set(dangerous) & set(ALLOWED)
