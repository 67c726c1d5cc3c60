"""The model families that can be read and written; to add one, write its file and list it here."""

from prime_megatron.families import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe
from prime_megatron.families.base import Family, FamilyConfig

FAMILIES: dict[str, Family] = {
    module.FAMILY.architecture: module.FAMILY for module in (llama, mistral, mixtral, qwen2, qwen3, qwen3_moe)
}
"""By the name in config.json's "architectures"."""

__all__ = ["FAMILIES", "Family", "FamilyConfig"]
