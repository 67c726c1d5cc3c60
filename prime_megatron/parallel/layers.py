"""Which pipeline chunk holds which layers."""

from __future__ import annotations

from collections.abc import Sequence

from prime_megatron.errors import InputError


def spread(count: int, parts: int) -> list[int]:
    """count as parts whole numbers that differ by at most one, the larger ones first."""
    base, extra = divmod(count, parts)
    return [base + (index < extra) for index in range(parts)]


def layer_ranges(
    num_layers: int, pipeline: int, virtual_pipeline: int, stage_layers: Sequence[int] | None
) -> list[list[range]]:
    """Global layer indices of every chunk, as [stage][virtual stage].

    A sequence visits chunk 0 of every stage, then chunk 1 of every stage, as in Megatron's interleaved
    schedule. stage_layers: layers of each stage (each split over its virtual stages); none: as even as
    possible. Raises InputError where they do not add up or a chunk would be empty.
    """
    if stage_layers is None:
        flat = spread(num_layers, pipeline * virtual_pipeline)
        sizes = [[flat[chunk * pipeline + stage] for chunk in range(virtual_pipeline)] for stage in range(pipeline)]
    else:
        if len(stage_layers) != pipeline or sum(stage_layers) != num_layers:
            raise InputError(
                f"parallel.pipeline_layers: {list(stage_layers)} has {len(stage_layers)} stages and "
                f"{sum(stage_layers)} layers, the model needs {pipeline} stages and {num_layers} layers"
            )
        sizes = [spread(layers, virtual_pipeline) for layers in stage_layers]
    if min(min(row) for row in sizes) < 1:
        raise InputError(
            f"parallel: {num_layers} layers over pipeline {pipeline} x virtual_pipeline {virtual_pipeline} "
            "leave a chunk without layers; use fewer stages"
        )
    ranges: list[list[range]] = [[] for _ in range(pipeline)]
    start = 0
    for chunk in range(virtual_pipeline):
        for stage in range(pipeline):
            ranges[stage].append(range(start, start + sizes[stage][chunk]))
            start += sizes[stage][chunk]
    return ranges
