"""PRIME (arXiv 2502.01456) on Megatron-core: policy, reference and implicit PRM in one colocated trainer."""

__version__ = "0.1.0"
