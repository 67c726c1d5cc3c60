"""config.json -> FamilyConfig: the only reader of that file's meaning. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families import FAMILIES
from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.keys import Keys
from prime_megatron.strict_json import parse_json, read_bytes, read_json

PLAIN_DTYPES = ("F64", "F32", "BF16", "F16")
"""What safetensors calls the dtypes that weights may have."""
MAX_CONFIG_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 100 * 10**6
"""safetensors' own bound."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OUTPUT_LAYER = "lm_head.weight"
_HEAD = "ForSequenceClassification"
_QUANTISED = ("quantization_config", "compression_config")


def read_config(folder: Path | str, *, value_head: bool = False) -> FamilyConfig:
    """What transformers would make of folder/config.json, for the families known here.

    Where it says that the output layer is tied, and the folder's weights have one that differs from the embedding, the
    model is untied, as transformers 5 has it. Such a folder's two tensors are read, once in a process; a folder without
    weights is what config.json says.

    value_head: for a critic or a reward model, which a ...ForSequenceClassification folder with one label is, too.

    Raises:
        InputError: no such file, not JSON, unknown architecture, quantised weights, a missing key, a value that this
            project does not compute or that means nothing; one line with file, key and value.
    """
    path = Path(folder) / "config.json"
    raw = read_raw(folder)
    try:
        family = _family(raw, value_head)
        for key in _QUANTISED:
            if raw.get(key) is not None:
                raise InputError(_quantised(Path(folder), key))
        config = family.parse(Keys(raw, family.defaults, family.nullable))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if config.tied and not value_head and _has_output_layer(Path(folder)):
        from prime_megatron.families.head import head_differs  # torch is needed for this alone

        if head_differs(config, Path(folder)):
            return replace(config, tied=False, own_head=True)
    return config


def _has_output_layer(folder: Path) -> bool:
    """By the index or the one file's header, whichever is there."""
    try:
        return OUTPUT_LAYER in read_json(folder / INDEX)["weight_map"]
    except (InputError, KeyError, TypeError):
        return OUTPUT_LAYER in header_dtypes(folder / SINGLE)


def read_raw(folder: Path | str) -> dict[str, Any]:
    """config.json as it stands. Raises InputError: no such file, not a JSON object, the folder holds something else."""
    path = Path(folder) / "config.json"
    try:
        raw: Any = parse_json(read_bytes(path, MAX_CONFIG_BYTES))
    except OSError:
        if Path(folder).exists() and not Path(folder).is_dir():
            raise InputError(f"{folder}: is a file, and a model is a folder; name the folder that holds it") from None
        if (Path(folder) / ".metadata").exists():
            raise InputError(
                f"{folder}: a Megatron checkpoint, not a Hugging Face folder; "
                "convert it: tools/convert_megatron_to_hf.py CHECKPOINT FOLDER"
            ) from None
        raise InputError(f"{path}: no such file; a model folder has a config.json in Hugging Face format") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: not a JSON object")
    if (Path(folder) / "adapter_config.json").exists():
        raise InputError(f"{folder}: has an adapter (adapter_config.json); merge it into the weights first")
    return raw


def _family(raw: dict[str, Any], value_head: bool) -> Family:
    """By architectures, which transformers' model_type must agree with: AutoModel goes by the latter."""
    names = raw.get("architectures")
    known = ", ".join(sorted(FAMILIES))
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        shown = "is missing" if names is None else f"= {names!r} is not a list of one name"
        raise InputError(f"architectures {shown}: the architecture is unknown; known: {known}")
    name = names[0]
    if value_head and name.endswith(_HEAD):
        name = name.removesuffix(_HEAD) + "ForCausalLM"
    if name not in FAMILIES:
        hint = " (a head of one value: for models.critic.path, or models.prm.path and prm.kind head)"
        hint = hint if _is_head(name) else ""
        raise InputError(f"architecture {name!r} is unknown{hint}; known: {known}")
    family = FAMILIES[name]
    model_type = raw.get("model_type")
    if model_type != family.name:
        raise InputError(f"model_type = {model_type!r}, but architectures says {names[0]} ({family.name!r})")
    return family


def names_value_head(folder: Path | str) -> bool:
    """Whether config.json names a ...ForSequenceClassification of a family known here. Raises as `read_raw`."""
    names = read_raw(folder).get("architectures")
    return isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and _is_head(names[0])


def value_head_keys(family: FamilyConfig) -> dict[str, Any]:
    """Keys of config.json by which transformers knows a model with a head of one value in place of the vocabulary."""
    name = family.architecture.removesuffix("ForCausalLM") + _HEAD
    return {"architectures": [name], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _is_head(name: str) -> bool:
    return name.endswith(_HEAD) and name.removesuffix(_HEAD) + "ForCausalLM" in FAMILIES


def _quantised(folder: Path, key: str) -> str:
    """The line that refuses a quantised folder: the key, and the first tensor that is not plain numbers."""
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in sorted(header_dtypes(path).items()):
            if dtype not in PLAIN_DTYPES:
                return f"{key}: quantised weights are not read ({path.name}: {name} is {dtype}); use a plain model"
    return f"{key}: engines would load these weights as quantised; take the key out if they are plain numbers"


def header_dtypes(path: Path) -> dict[str, str]:
    """Tensor name -> dtype of a safetensors file; empty where it is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(path.stat().st_size, MAX_HEADER_BYTES):
                return {}
            header = parse_json(file.read(length))
        return {name: str(row["dtype"]) for name, row in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
