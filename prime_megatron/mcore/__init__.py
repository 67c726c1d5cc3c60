"""The Megatron place: the only package that imports megatron.core."""
