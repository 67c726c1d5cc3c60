"""The house's rules, read from the syntax tree: who imports whom, sizes, and what no file may contain."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "prime_megatron"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Part of the package -> the parts (or modules) that it may import besides itself. Every part is here; lower ones first.
BASE = {"config", "types", "device", "errors"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "types": {"errors"},
    "device": {"errors"},
    "parallel": BASE,
    "algo": {"types", "config", "errors"},
    "data": {"types", "config", "errors"},
    "verify": {"types", "config", "errors"},
    "metrics": {"types", "config", "errors"},
    "kernels": {"algo", "device", "errors"},
    "families": {"parallel", "config", "errors"},
    "mcore": {"families", "kernels", "parallel"} | BASE,
    "weights": {"families", "parallel"} | BASE,
    "rollout": {"weights", "verify", "algo.filtering", "parallel"} | BASE,
    "step": {"algo", "kernels", "mcore", "data", "metrics", "parallel", "rollout.collect"} | BASE,
    "checkpoint": {"mcore", "parallel", "metrics"} | BASE,
    "convert": {"families", "mcore", "parallel"} | BASE,
    "evaluate": {"rollout", "verify", "data", "algo", "parallel"} | BASE,
}
ALLOWED["run"] = {part for part in ALLOWED if part != "convert"}
ALLOWED["trainer"] = ALLOWED["sft"] = {"run"} | ALLOWED["run"]
ALLOWED["cli"] = {"trainer", "sft", "convert"} | ALLOWED["trainer"]
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = set()

# Library -> where it may be imported: a folder or a file of the package.
CONFINED = {
    "megatron": "mcore",
    "sglang": "rollout/sglang",
    "vllm": "rollout/vllm",
    "transformer_engine": "mcore",
    "apex": "mcore",
    "math_verify": "verify",
    "tensorboard": "metrics",
    "wandb": "metrics",
}
# Pure Python on plain data: testable and readable without torch.
WITHOUT_TORCH = ("config/", "errors", "run/output_dir")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything imported anywhere in the file, `from a import b` as a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_follow_the_direction(path: Path) -> None:
    part = relative(path).split("/")[0]
    assert part in ALLOWED, f"{part} is a new part: give it a place in ALLOWED"
    for name in imports(path):
        if not name.startswith("prime_megatron."):
            continue
        target = name.removeprefix("prime_megatron.")
        if target == "__version__":
            continue
        assert any(is_within(target, allowed) for allowed in {part} | ALLOWED[part]), f"{part} imports {target}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_libraries_stay_in_their_place(path: Path) -> None:
    place = relative(path)
    for name in imports(path):
        library = name.split(".")[0]
        if library in CONFINED:
            assert place.startswith(CONFINED[library]), f"{place} imports {name}; only {CONFINED[library]} may"
        if place.startswith(WITHOUT_TORCH):
            assert library not in ("torch", "transformers"), f"{place} imports {name}"


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines"
    if relative(path).startswith("kernels/"):
        return
    for function in functions(tree_of(path)):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{relative(path)}:{function.lineno} {function.name} has {length} lines"


def called(node: ast.Call) -> str:
    """The dotted name of what is called, as far as it is one."""
    parts: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        parts.append(target.id)
    return ".".join(reversed(parts))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_dangerous_calls(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        where = f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Name):
            assert node.id != "NotImplementedError", f"{where}: a placeholder"
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            assert isinstance(node, ast.Nonlocal), f"{where}: global"
        if not isinstance(node, ast.Call):
            continue
        name, given = called(node), {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "torch.load":
            value = given.get("weights_only")
            assert isinstance(value, ast.Constant), f"{where}: torch.load without weights_only=True"
            assert value.value is True, f"{where}: torch.load without weights_only=True"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"), f"{where}: {name}"
        shell = given.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False), f"{where}: shell=True"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_leftovers_and_no_open_addresses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X"):
        assert word not in text, f"{relative(path)}: {word}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value != "0.0.0.0", f"{relative(path)}:{node.lineno}: listens on every interface"
