"""Rows, tokens, the prompt stream, and how a batch is cut over ranks and micro-batches."""
