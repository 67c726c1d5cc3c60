"""The parity bench's tiny models, and a Megatron run of them."""

from tools.parity_work.models import (
    FAMILIES,
    logits,
    make_model,
    pack,
    reference_logits,
    restart,
    run,
    sequences,
    start,
)

__all__ = ["FAMILIES", "logits", "make_model", "pack", "reference_logits", "restart", "run", "sequences", "start"]
