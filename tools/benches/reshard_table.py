"""A plan to read: what every rank copies, sends and receives."""

from __future__ import annotations

from prime_megatron.weights.plan import ReshardPlan


def plan_table(plan: ReshardPlan, itemsize: int, bucket_bytes: int) -> str:
    """One line a rank: copies from itself, bytes copied, sent (once, to however many) and received, in megabytes
    (10^6), and the number of buckets; then how they travel. itemsize: bytes of an element on its way."""
    messages = plan.messages(max(1, bucket_bytes // itemsize // 2))
    rows = [("rank", "copies", "local MB", "buckets sent", "sent MB", "received", "received MB")]
    for rank, copies in enumerate(plan.local):
        sent = [s.numel for s in messages if s.owner == rank]
        received = [s.numel for s in messages if rank in s.receivers]
        local = sum(copy.numel for copy in copies)
        numbers = (rank, len(copies), _mb(local, itemsize), len(sent), _mb(sum(sent), itemsize), len(received))
        rows.append((*map(str, numbers), _mb(sum(received), itemsize)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    largest = max((s.numel for s in messages), default=0)
    lines.append(
        f"{len(plan.transfers)} transfers in {len(messages)} messages, the largest of {_mb(largest, itemsize)} MB, "
        f"each to {_span([len(s.receivers) for s in messages])} ranks"
    )
    return "\n".join(lines)


def _span(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _mb(numel: int, itemsize: int) -> str:
    return f"{numel * itemsize / 1e6:.1f}"
