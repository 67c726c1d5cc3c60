"""The paper, every formula once: filtering, process rewards, advantages, losses, statistics.

Pure torch on the packed tensors of ``prime_megatron.types``: no torch.distributed, no Megatron, no device decision.
What must be known over all data-parallel ranks comes in through a ``Reduction``.
"""
