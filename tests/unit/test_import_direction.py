"""The house's rules, read from the syntax tree: who imports whom, sizes, and what no file may contain.

Every test goes over all files of the package and lists what it finds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "prime_megatron"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_ROOT_FILES = 9

# Part of the package -> the parts (or modules) that it may import besides itself. Every part is here; lower ones first.
BASE = {"config", "types", "device", "errors", "strict_json"}
ALLOWED = {
    "errors": set(),
    "strict_json": {"errors"},
    "config": {"strict_json", "errors"},
    "types": {"errors"},
    "device": {"errors"},
    "parallel": BASE,
    "algo": {"types", "config", "errors"},
    "data": {"types", "config", "strict_json", "errors"},
    "verify": {"types", "config", "errors"},
    "metrics": {"types", "config", "errors"},
    "kernels": {"algo", "types", "device", "errors"},
    "families": {"parallel", "config", "strict_json", "errors"},
    "mcore": {"families", "kernels", "algo.token_loss", "parallel"} | BASE,
    "weights": {"families", "parallel"} | BASE,
    "rollout": {"weights", "families", "verify", "algo.filtering", "parallel"} | BASE,
    "step": {"algo", "kernels", "mcore", "data", "metrics", "parallel", "rollout.collect"} | BASE,
    "plan": {"families", "parallel", "step.plan", "step.works", "kernels.head_chunks", "config", "errors"},
    "checkpoint": {"mcore", "parallel", "metrics", "data.files"} | BASE,
    "convert": {"families", "mcore", "parallel"} | BASE,
    "generate": {"rollout", "verify", "data"} | BASE,
    "evaluate": {"generate", "rollout", "verify", "data", "algo", "parallel"} | BASE,
}
ALLOWED["report"] = {"metrics", "strict_json", "errors"}
ALLOWED["run"] = {part for part in ALLOWED if part not in ("convert", "report")}
ALLOWED["curate"] = {"evaluate", "generate", "rollout", "verify", "data"} | BASE
ALLOWED["rehearse"] = {"run"} | ALLOWED["run"]
ALLOWED["trainer"] = ALLOWED["sft"] = ALLOWED["prm"] = {"run"} | ALLOWED["run"]
ALLOWED["slurm"] = {"config", "errors", "checkpoint.layout", "run.lock", "run.output_dir"}
ALLOWED["watch"] = {"metrics", "run.lock", "run.output_dir", "checkpoint.layout"} | BASE
ALLOWED["cli"] = {"slurm", "watch", "report", "curate", "trainer", "sft", "prm", "convert", "rehearse"}
ALLOWED["cli"] |= ALLOWED["trainer"]
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
    "mlflow": "metrics",
    "matplotlib": "report",
}
# Pure Python on plain data: testable and readable without torch.
WITHOUT_TORCH = (
    "config/", "errors", "strict_json", "run/lock", "run/output_dir", "run/written", "run/signals", "slurm/", "plan/",
    "step/plan", "step/works", "step/moves", "families/count", "families/read", "kernels/head_chunks",
)  # fmt: skip


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


def test_every_part_has_its_place() -> None:
    """A part that the rules do not know fails: give it a place in ALLOWED. The root is an entrance, not a hallway."""
    parts = {relative(path).split("/")[0] for path in FILES}
    assert parts - ALLOWED.keys() == set()
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ROOT_FILES


def test_imports_follow_the_direction() -> None:
    found = []
    for path in FILES:
        part = relative(path).split("/")[0]
        for name in imports(path):
            target = name.removeprefix("prime_megatron.")
            if target in (name, "__version__"):
                continue
            if not any(is_within(target, allowed) for allowed in {part} | ALLOWED[part]):
                found.append(f"{relative(path)} imports {target}")
    assert found == []


def test_libraries_stay_in_their_place() -> None:
    found = []
    for path in FILES:
        place = relative(path)
        for name in imports(path):
            library = name.split(".")[0]
            if library in CONFINED and not place.startswith(CONFINED[library]):
                found.append(f"{place} imports {name}; only {CONFINED[library]} may")
            if place.startswith(WITHOUT_TORCH) and library in ("torch", "transformers"):
                found.append(f"{place} imports {name}")
    assert found == []


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_files_and_functions_stay_readable() -> None:
    found = []
    for path in FILES:
        place = relative(path)
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MAX_FILE_LINES:
            found.append(f"{place} has {lines} lines")
        for function in functions(tree_of(path)):
            assert function.end_lineno is not None
            length = function.end_lineno - function.lineno + 1
            if length > MAX_FUNCTION_LINES and not place.startswith("kernels/"):
                found.append(f"{place}:{function.lineno} {function.name} has {length} lines")
    assert found == []


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


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def danger(node: ast.AST) -> str | None:
    """What is wrong with a piece of code that no file may hold."""
    if isinstance(node, ast.Name) and node.id == "NotImplementedError":
        return "a placeholder"
    if isinstance(node, ast.Global):
        return "global"
    if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
        return "listens on every interface"
    if not isinstance(node, ast.Call):
        return None
    name, given = called(node), {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        return "torch.load without weights_only=True"
    if name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"):
        return name
    if "shell" in given and not is_constant(given["shell"], False):
        return "shell=True"
    return None


def test_nothing_dangerous_and_no_leftovers() -> None:
    found = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        found += [f"{relative(path)}: {word}" for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X") if word in text]
        for node in ast.walk(tree_of(path)):
            what = danger(node)
            if what is not None:
                found.append(f"{relative(path)}:{getattr(node, 'lineno', 0)}: {what}")
    assert found == []
