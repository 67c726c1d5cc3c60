"""The metrics that are not made from statistics (those are in ``algo.metric_table``): name, unit and meaning.

<...> in a name stands for one of several words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A row of docs/reference/metrics.md."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("rollout/outcome", "1", "Outcome of all responses that were generated for this step, filtered ones too."),
    Metric("rollout/outcome/ability/<ability>", "1", "The same of one ability's prompts."),
    Metric("rollout/outcome/data_source/<data_source>", "1", "The same of one data source's prompts."),
    Metric("rollout/verdict_<verdict>", "responses", "Responses with this verdict, of all that were generated."),
    Metric("rollout/pass_rate", "share", "Prompts that the filter kept of those it saw."),
    Metric("rollout/pass_rate/ability/<ability>", "share", "The same of one ability's prompts."),
    Metric("rollout/pass_rate/data_source/<data_source>", "share", "The same of one data source's prompts."),
    Metric("process_reward/largest_share", "share",
           "Part of the sum of |process reward| on the largest 1 % of the response tokens."),
    Metric("teacher/mix", "1", "l of the step: the teacher's share in the size of advantages (prm.teacher.mode rlsd)."),
    Metric("prm/accuracy/ability/<ability>", "share", "prm/accuracy of one ability's responses in the batch."),
    Metric("prm/accuracy/data_source/<data_source>", "share", "prm/accuracy of one data source's responses."),
    Metric("rollout/too_easy", "prompts", "Dropped: mean outcome above rollout.filter.upper."),
    Metric("rollout/too_hard", "prompts", "Dropped: mean outcome below rollout.filter.lower."),
    Metric("rollout/truncated_groups", "prompts", "Dropped by rollout.filter.drop_truncated."),
    Metric("rollout/rounds", "rounds", "Generation rounds until the batch was full."),
    Metric("rollout/carried_in", "prompts", "Kept prompts left over from earlier steps."),
    Metric("rollout/expired", "prompts", "Left-over prompts that were too old to use."),
    Metric("rollout/missing", "prompts", "What a smaller batch lacks (rollout.filter.on_starved); 0 for a full one."),
    Metric("rollout/verifier_errors", "responses", "Responses whose verifier failed, of whatever kind of failure."),
    Metric("rollout/verifier_<failure>", "responses", "The same of one kind; a response that failed scores 0."),
    Metric("data/epoch", "passes", "Passes over the training prompts."),
    Metric("data/rows", "rows", "Rows of the training data, those that are skipped or left out not counted."),
    Metric("data/skipped_prompts", "rows", "Rows of the training data that are skipped: over data.max_prompt_tokens."),
    Metric("data/left_out_rows", "rows", "Rows left out by data.skip_abilities and data.bad_truth."),
    Metric("step/tokens", "tokens", "Prompt and response tokens that the step trained on, over all ranks."),
    Metric("engine/tokens", "tokens", "Response tokens that the policy being trained made itself, over all ranks."),
    Metric("engine/logprob_gap_mean", "nats", "|log-prob of the trainer - of the engine| on those tokens."),
    Metric("engine/logprob_gap_max", "nats", "The largest such difference."),
    Metric("engine/kl", "nats", "KL(engine || trainer) on those tokens, estimator k3."),
    Metric("engine/restarts", "restarts", "Restarts of engine processes so far, over all replicas."),
    Metric("<role>/grad_norm", "1", "Gradient norm before clipping, the mean over the role's updates of the step."),
    Metric("<role>/lr", "1", "Learning rate of the role's last update."),
    Metric("<role>/skipped_updates", "updates", "Updates skipped because a loss or gradient was not finite."),
    Metric("eval/accuracy", "share", "Greedy answers to the held-out prompts that are right in full."),
    Metric("eval/accuracy/ability/<ability>", "share", "The same of one ability's prompts."),
    Metric("eval/accuracy/data_source/<data_source>", "share", "The same of one data source's prompts."),
    Metric("eval/score", "1", "Mean outcome of the greedy answers, those of programs that pass some tests included."),
    Metric("eval/response_tokens", "tokens", "Length of the greedy answers."),
    Metric("eval/truncated", "share", "Greedy answers cut at the length limit."),
    Metric("eval/sampled_accuracy", "share", "Sampled answers that are right in full; with eval.samples_per_prompt."),
    Metric("eval/pass@<k>", "share", "Held-out prompts with a right answer among k samples, unbiased estimate."),
    Metric("eval/<set>/accuracy", "share", "A suite's set: responses that are right in full, avg@n; with eval.suite."),
    Metric("eval/<set>/accuracy_<end>", "share", "Ends (low, high) of its 95 % bootstrap interval over questions."),
    Metric("eval/<set>/score", "1", "Mean outcome of the set's responses."),
    Metric("eval/<set>/pass@<k>", "share", "Questions with a right answer among k samples, unbiased estimate."),
    Metric("eval/<set>/majority@<k>", "share", "Questions whose most frequent answer among k samples is right."),
    Metric("eval/<set>/response_tokens", "tokens", "Length of the set's responses."),
    Metric("eval/<set>/truncated", "share", "Responses cut at the length limit."),
    Metric("eval/<set>/no_answer", "share", "Responses without an answer, or without a program."),
    Metric("eval/<set>/grader_timeout", "share", "Responses that were not graded in time."),
    Metric("eval/<set>/grader_failed", "share", "Responses on which the verifier failed otherwise."),
    Metric("eval/macro/accuracy", "share", "Mean of eval/<set>/accuracy, where all sets of the suite were due."),
    Metric("eval/macro/accuracy_<end>", "share", "Ends (low, high) of its 95 % bootstrap interval."),
    Metric("eval/prm_accuracy", "share", "prm/accuracy on the held-out labelled responses."),
    Metric("eval/prm_pair_accuracy", "share", "prm/pair_accuracy on the held-out labelled responses."),
    Metric("eval/prm_ce", "nats", "prm/ce on the held-out labelled responses."),
    Metric("prm_health/pair_accuracy", "share",
           "prm/pair_accuracy of the PRM on responses that it does not learn from; as all of these with prm.health."),
    Metric("prm_health/auc", "share",
           "P(Q of a right response > Q of a wrong one) over all held-out responses, a tie one half."),
    Metric("prm_health/calibration_error", "1", "prm/calibration_error on the held-out responses."),
    Metric("prm_health/brier", "1", "prm/brier on the held-out responses."),
    Metric("prm_health/frozen_<figure>", "1",
           "The same four of the PRM's frozen copy: pair_accuracy, auc, calibration_error, brier."),
    Metric("prm_health/delimiter_share", "share",
           "Part of the sum of |token reward| on prm.step_delimiter and control tokens, the last token left out."),
    Metric("prm_health/delimiter_tokens", "share", "Such tokens, of all tokens of the held-out responses."),
    Metric("prm_health/last_share", "share", "Part of the sum of |token reward| on the last tokens of responses."),
    Metric("prm_health/length_correlation", "1", "Correlation of Q with the length, over the held-out responses."),
    Metric("prm_health/reward_right", "1",
           "Mean over the right held-out responses of the mean token reward in each, before granularity and norm."),
    Metric("prm_health/reward_wrong", "1", "The same of the wrong ones."),
    Metric("prm_health/failed_checks", "checks", "Checks in a row, up to now, that failed (prm.health.margin)."),
    Metric("prm_health/change", "1", "1: the alarm begins with this check; -1: it ends; 0: neither."),
    Metric("prm_health/alarm", "1", "1 while the alarm is on, for every step; it acts from the next step on."),
    Metric("sft/loss", "nats", "Mean -log p of a response token (supervised runs)."),
    Metric("sft/epoch", "passes", "Passes over the supervised rows."),
    Metric("sft/rows", "rows", "Supervised rows that are learned."),
    Metric("sft/skipped_rows", "rows", "Supervised rows that are skipped: over data.max_tokens."),
    Metric("sft/masked_rows", "rows",
           "Supervised rows of which nothing is learned: weight 0, or an answer inside an open thought."),
    Metric("time/<stage>_s", "s", "Wall-clock time of a stage of the step, inner stages left out; step: all of it."),
    Metric("speed/verify_tests", "tests", "Answers graded in processes, each test of a program counted."),
    Metric("speed/verify_tests_per_s", "tests/s", "The same over the seconds that the processes worked on them."),
    Metric("speed/verify_queue_wait_s", "s", "Wait of such an answer for a free process, on average."),
    Metric("speed/verify_wait_share", "share", "Part of the step in which generation was done and verdicts were not."),
    Metric("speed/tokens_per_s", "tokens/s", "Tokens of the step over its time, evaluation and saving left out."),
    Metric("speed/model_flops_per_s", "FLOP/s", "Model FLOPs of the step's passes over that time."),
    Metric("speed/utilisation", "share", "model_flops_per_s over the matrix-product speed measured at the start."),
    Metric("memory/<edge>_<place>_bytes", "bytes",
           "Memory of this rank's process (host) or device at an edge of generation, with parallel.offload phases when "
           "a model begins to work (<role>_reads, <role>_learns), too; in memory.jsonl."),
    Metric("memory/<edge>/<role>/<kind>_<place>_bytes", "bytes",
           "The same, of one model's parameters, gradients or optimizer state."),
    Metric("memory/moves/<number>_<role>_to_<place>_bytes", "bytes",
           "Copied when a model left the device or came back, numbered in the order of the step; <role>_optimizer: by "
           "optimizer steps piece by piece, in all since the last move. What is only dropped is not here."),
)  # fmt: skip
