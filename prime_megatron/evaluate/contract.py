"""What stands beside every figure: hashes of what was asked, how it was drawn, and who graded it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import prime_megatron
from prime_megatron import verify
from prime_megatron.evaluate.ready import ReadySet
from prime_megatron.evaluate.suite import SetConfig, Suite
from prime_megatron.generate.identity import text_digest
from prime_megatron.generate.questions import Question, digest_of
from prime_megatron.verify import VerifyOptions

_GRADER_PACKAGES = ("math-verify", "antlr4-python3-runtime", "latex2sympy2-extended", "sympy")


def grader_contract(options: VerifyOptions) -> dict[str, Any]:
    """Who graded: our verifiers' code by hash, the packages behind them, the limits."""
    return {
        "prime_megatron": prime_megatron.__version__,
        "code_sha256": _code_digest(Path(verify.__file__).parent, Path(__file__).parent),
        "packages": {name: _version(name) for name in _GRADER_PACKAGES},
        "timeout_s": options.timeout_s,
        "code": options.code.model_dump(mode="json"),
    }


def set_contract(config: SetConfig, questions: Sequence[Question], ready: ReadySet | None) -> dict[str, Any]:
    """What one set asked. ``ready``: None where nothing was generated from tokens (an endpoint, given answers)."""
    found: dict[str, Any] = {
        "file_sha256": config.sha256,
        "num_questions": len(questions),
        "questions_sha256": digest_of(sorted(questions, key=lambda question: question.id)),
        "wording": {
            key: getattr(config, key)
            for key in ("prompt", "system", "system_file", "system_newlines", "chat", "template_kwargs")
        },
        "decoding": {key: getattr(config, key) for key in ("n", "temperature", "top_p", "max_tokens", "stop")},
        "grader": {"name": config.grader if config.form == "math" else config.form, "pattern": config.answer_pattern},
    }
    if ready is not None:
        by_id = {prompt.uid: prompt for prompt in ready.prompts}
        texts = [[uid, by_id[uid].text, list(by_id[uid].token_ids)] for uid in sorted(by_id)]
        found |= {
            "prompts_sha256": text_digest(texts),
            "context": ready.context,
            "num_capped": ready.num_capped,
            "num_too_long": ready.num_too_long,
        }
    return found


def suite_contract(suite: Suite) -> dict[str, Any]:
    """Which suite, in which of its wordings."""
    return {"name": suite.name, "mode": suite.mode, "seed": suite.seed, "block": suite.block, "sha256": suite.digest()}


def _code_digest(*folders: Path) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
