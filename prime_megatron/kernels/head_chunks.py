"""How many tokens' fp32 logits the vocabulary head holds at once on a GPU; the memory model reads it, too."""

SCORE_BYTES = 2_000_000_000
"""Logits of one chunk in scoring: of a 152k vocabulary 3072 tokens (on an H200 2.5 % faster than 4096, which takes
another GEMM of cuBLAS)."""
TRAIN_BYTES = 5_000_000_000
"""In training, 8192 tokens: the products of the backward gain 5 % over 4096."""
ROW_MULTIPLE = 1024
"""Chunk sizes that fill the GEMM's tiles and waves."""


def tokens_within(num_bytes: int, num_tokens: int, num_rows: int) -> int:
    """Tokens of a chunk whose fp32 logits over `num_rows` vocabulary rows fit into `num_bytes`; at least one."""
    limit = num_bytes // (4 * max(num_rows, 1))
    return max(1, min(num_tokens, limit - limit % ROW_MULTIPLE if limit > ROW_MULTIPLE else limit))
