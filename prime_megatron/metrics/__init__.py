"""What a run tells: stage times, metrics, samples, the summary.

Names of metrics are "group/name". The groups "time/" and "speed/" hold what the clock says; every other number
is the same, to the last bit, in two runs of one config and seed.
"""

from prime_megatron.metrics.clock import Clock, StepTimes
from prime_megatron.metrics.columns import PRM_COLUMNS, SFT_COLUMNS, TRAIN_COLUMNS, Column
from prime_megatron.metrics.flops import measure_peak_flops, model_flops
from prime_megatron.metrics.jsonl import read_jsonl, truncate_jsonl
from prime_megatron.metrics.log import MetricsLog, open_metrics_log
from prime_megatron.metrics.samples import (
    Credit,
    SampleRow,
    SamplesLog,
    credits_of,
    held_out_rows,
    open_samples_log,
    rejected_rows,
    sample_rows,
)
from prime_megatron.metrics.summary import Summary, print_summary, write_summary

__all__ = [
    "PRM_COLUMNS", "SFT_COLUMNS", "TRAIN_COLUMNS", "Clock", "Column", "Credit", "MetricsLog", "SampleRow", "SamplesLog",
    "StepTimes", "Summary", "credits_of", "held_out_rows", "measure_peak_flops", "model_flops", "open_metrics_log",
    "open_samples_log", "print_summary", "read_jsonl", "rejected_rows", "sample_rows", "truncate_jsonl",
    "write_summary",
]  # fmt: skip
