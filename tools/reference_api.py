"""The page of the Python API, from the source: signatures, fields and docstrings as they stand there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API = {
    "A run": ("config.load", "trainer", "sft", "prm", "run.assemble"),
    "What passes between the stages": ("types",),
    "Outcome rewards": ("verify.answer", "verify.registry"),
    "Process rewards and advantages": (
        "algo.process_reward", "algo.advantage", "algo.baselines", "algo.whitening", "algo.filtering", "algo.overlong",
        "algo.credit.base", "algo.head_value", "algo.prefix_value", "algo.teacher", "algo.reduction",
    ),
    "Losses": ("algo.losses", "algo.objectives.base", "algo.importance", "algo.kl", "algo.prm_loss", "algo.value_loss"),
    "Fused operations": ("kernels.logprob", "kernels.reward"),
    "Models": ("families.base", "families.read", "families.folder"),
    "Errors": ("errors",),
}  # fmt: skip
"""What a program of the user's may import, by what it is for; modules of prime_megatron."""


def api_page(made: str) -> str:
    """Every public function and class of the modules in API; ``made`` says how the page came to be."""
    lines = [
        "# Python API\n", made,
        "What a program of your own may import. Shapes are those of `prime_megatron.types`: N sequences, T packed "
        "tokens. "
        "A command line does all of this without a program: [the verbs](verbs.md).\n",
    ]  # fmt: skip
    for title, modules in API.items():
        lines.append(f"## {title}\n")
        for module in modules:
            lines += _module(module)
    return "\n".join(lines)


def _module(name: str) -> Iterator[str]:
    path = ROOT / "prime_megatron" / (name.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    yield f"### prime_megatron.{name}\n"
    # As text: a formula is no Markdown.
    yield from ("```text", (ast.get_docstring(tree) or "").strip(), "```", "")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            shown = _class(node, lines) if isinstance(node, ast.ClassDef) else _function(node, lines)
            yield from ("```python", *shown, "```", "")


def _function(node: ast.FunctionDef, lines: list[str]) -> list[str]:
    """Decorators, signature and docstring, as they stand in the source."""
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    documented = ast.get_docstring(node) is not None
    last = node.body[0].end_lineno if documented else node.body[0].lineno - 1
    assert last is not None
    if not documented and node.body[0].lineno == node.lineno:
        last = node.lineno
    return [line for line in lines[first - 1 : last] if not line.strip().startswith("#")]


def _class(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """A class's line, docstring, public fields with theirs, and public methods."""
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    shown = (
        lines[first - 1 : node.body[0].lineno - 1] if node.body[0].lineno > node.lineno else [lines[node.lineno - 1]]
    )
    documented = False
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            documented = False
            if not part.name.startswith("_") or part.name == "__init__":
                shown += ["", *_function(part, lines)]
        elif isinstance(part, ast.Expr) and (documented or part is node.body[0]):
            shown += lines[part.lineno - 1 : part.end_lineno]
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            name = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
            documented = isinstance(name, ast.Name) and not name.id.startswith("_")
            if documented:
                shown += lines[part.lineno - 1 : part.end_lineno]
    return shown
