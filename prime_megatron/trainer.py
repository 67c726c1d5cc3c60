"""PRIME, one program under torchrun: every rank runs the same step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prime_megatron.algo.teacher import mix_at
from prime_megatron.config import PrmKind, PrmReference, TrainConfig, UpdateOrder
from prime_megatron.config.roles import has_told_teacher
from prime_megatron.errors import ExitCode, InputError, NotFinite, RunError, StopRequested
from prime_megatron.mcore.head_prm import HeadResult
from prime_megatron.mcore.role import Learning, Role, TrainResult
from prime_megatron.parallel.collectives import agree_on
from prime_megatron.run.assemble import open_parts
from prime_megatron.run.ending import Ending
from prime_megatron.run.output_dir import mark_done
from prime_megatron.run.parts import Parts
from prime_megatron.step.advantages import step_advantages, with_teacher
from prime_megatron.step.batch import StepBatch
from prime_megatron.step.loss_weights import loss_weights
from prime_megatron.step.losses import critic_loss, policy_loss
from prime_megatron.step.metrics import StepRecord
from prime_megatron.step.plan import OldLogprobs, plan_step
from prime_megatron.step.prm import train_prm
from prime_megatron.step.prm_head import head_as_log_ratio, update_head
from prime_megatron.step.teacher import take_copy, told_logprobs
from prime_megatron.types import Advantages, Group, MiniBatch, Scores


class PrimeTrainer:
    """Trains the policy with the implicit PRM's process rewards.

    Args:
        config: the run.
        parts: the roles, the engine and what stands between them (``run.assemble``).
    """

    def __init__(self, config: TrainConfig, parts: Parts) -> None:
        self.config = config
        self.parts = parts
        self.plan = plan_step(config)
        self.version = 0
        """Steps that the policy has learned from; names the weights that made a sample."""

    def run(self, *, resume: str | None) -> int:
        """The steps that are left, reported and saved; returns the exit code.

        A stop (signal, wall-clock limit) drops a step that is in its rollout and lets a later one finish. So does an
        end that the run itself decides.

        Raises:
            RunEnded: the run ended itself; the last finished step is saved.
        """
        parts, steps, ending = self.parts, self.config.run.steps, Ending()
        self.version = parts.checkpoints.resume(resume)
        parts.reporter.go_on_after(self.version)
        parts.reporter.start()
        with parts.guarded():
            with ending.noted():
                self.publish(self.version)
                parts.reporter.begin(self.version)
                while self.version < steps and not parts.stop.agreed():
                    with parts.tracing.step(self.version + 1):
                        self.finish_step(self.version + 1)
            parts.watchdog.saving()
            parts.colocation.sleep_engine()
            if self.version < steps or ending.why or self.config.checkpoint.save_final:
                ending.save(parts.checkpoints, self.version)
            parts.checkpoints.close()
            parts.tracing.finish()
        ending.tell(self.version)
        if self.version < steps:
            parts.reporter.log.message(f"stopped after step {self.version}: {parts.stop.reason}")
            return ExitCode.REQUEUE
        parts.save_models()
        parts.reporter.finish()
        agree_on(lambda: mark_done(self.config, steps))
        return ExitCode.DONE

    def finish_step(self, index: int) -> None:
        """Step, report, save; a step that ends in its rollout, or generates no numbers, leaves no trace."""
        parts = self.parts
        place = parts.prompts.state()
        try:
            record = self.step(index)
        except StopRequested:
            parts.prompts.restore(place)
            return
        except (RunError, InputError):
            parts.prompts.restore(place)
            raise
        except NotFinite:
            parts.prompts.restore(place)
            parts.nonfinite.generated(index)
            return
        parts.reporter.step(index, record)
        parts.nonfinite.check(index, record.results, record.tensors)
        every = self.config.checkpoint.every
        with parts.clock("save"), parts.colocation.saving(due=every > 0 and index % every == 0):
            parts.checkpoints.after_step(index)

    def step(self, index: int) -> StepRecord:
        """Step ``index``, from 1: rollout, score, PRM, advantage, policy, reshard. Collective over the world."""
        parts, clock = self.parts, self.parts.clock
        if has_told_teacher(self.config) and mix_at(self.config.prm.teacher, index) == 0.0:
            self.plan = plan_step(self.config, taught=False)
        with clock("rollout"):
            collected = parts.collector.collect(index)
            parts.colocation.sleep_engine()
            batch = parts.batcher(collected.groups)
        with clock("score"):
            if parts.engine_check.due:
                parts.colocation.reads(parts.roles.policy)
                parts.engine_check(batch, self.version)
            scores = self.ask_teacher(index, collected.groups, batch, self.score(batch))
        with clock("prm"):
            use = parts.prm_health.begin(index, self.prm_and_reference)
            scores, prm = self.update_prm(batch, scores, learns=use.learns)
            held_out = self.measure_prm(index) | parts.prm_health.end(index, collected.groups, self.prm_and_reference)
        with clock("advantage"):
            advantages = step_advantages(self.config, batch.rollout, scores, parts.reduce, process=use.rewards)
            advantages = with_teacher(self.config, batch.rollout, scores, advantages, index)
        with clock("policy"):
            policy = self.update_policy(batch, scores, advantages)
        critic = None
        if self.plan.critic:
            with clock("critic"):
                critic = self.update_critic(batch, scores, advantages)
        with clock("reshard"):
            made_by = self.version
            self.publish(made_by + 1)
        return StepRecord(
            made_by,
            collected,
            batch,
            scores,
            advantages,
            prm,
            policy,
            critic=critic,
            prm_held_out=held_out,
            gap_limit=parts.engine_check.limit,
        )

    def publish(self, version: int) -> None:
        """Hand the policy's weights to the engine as this version."""
        self.parts.colocation.publish(version)
        self.version = version

    def score(self, batch: StepBatch) -> Scores:
        """Log-probs of the models that this step reads before any of them learns."""
        roles, plan = self.parts.roles, self.plan
        old = ref = policy_ref = None
        if plan.old_logprobs is not OldLogprobs.none:
            later = plan.old_logprobs is OldLogprobs.later
            minis = batch.policy[1:] if later else batch.policy  # the first one's stay 0
            old = self._logprobs(roles.policy, batch, minis, temperature=self._temperature)
        if plan.reference:
            # In the micro-batches of the model that it is compared with, so that equal weights score alike to the last
            # bit: products of other sizes round differently, and batch_norm would make a reward of that.
            minis, temperature = (batch.policy, self._temperature) if plan.rewards_itself else (batch.prm, 1.0)
            ref = self._logprobs(roles.reference, batch, minis, temperature=temperature)
        elif plan.prm and self.config.prm.reference is PrmReference.policy:
            ref = old
        if plan.policy_reference:
            policy_ref = ref
            if not plan.shared_reference:
                policy_ref = self._logprobs(roles.policy_reference, batch, batch.policy, temperature=self._temperature)
        values = None
        if roles.critic is not None:
            micro = [micro for mini in batch.critic for micro in mini.micro]
            self.parts.colocation.reads(roles.critic)
            values = roles.critic.values(micro, batch.num_local_tokens)
        return Scores(old, ref, policy_ref, prm_logprobs_T=None, values_T=values)

    def ask_teacher(self, index: int, groups: Sequence[Group], batch: StepBatch, scores: Scores) -> Scores:
        """The log-probs of a teacher in the PRM's place; a copy of the policy reads the truth in its prompts."""
        teacher, policy = self.parts.roles.teacher, self.parts.roles.policy
        if not self.plan.teacher:
            return scores
        if not has_told_teacher(self.config):
            judged_T = self._logprobs(teacher, batch, batch.policy, temperature=self._temperature)
            return scores.with_teacher(judged_T)
        self.parts.colocation.reads(policy, beside=teacher)
        take_copy(teacher, policy, self.config.prm.teacher, index)
        self.parts.colocation.reads(teacher)
        judged_T = told_logprobs(teacher, self.parts.batcher, groups, batch, temperature=self._temperature)
        return scores.with_teacher(judged_T)

    def update_prm(
        self, batch: StepBatch, scores: Scores, *, learns: bool
    ) -> tuple[Scores, TrainResult | HeadResult | None]:
        """Score with the PRM and let it learn, in the configured order; score only where it takes no update."""
        if not self.plan.prm:
            return scores, None
        roles, ref_T = self.parts.roles, scores.ref_logprobs_T
        order, colocation = self.config.prm.update if learns else UpdateOrder.none, self.parts.colocation
        if self.config.prm.kind is PrmKind.head:
            (colocation.reads if order is UpdateOrder.none else colocation.learns)(roles.prm)
            return update_head(roles.prm, batch, scores, self.config.prm, order)

        def learned(scored_T: Tensor | None) -> TrainResult:
            colocation.learns(roles.prm)
            return train_prm(roles.prm, batch, ref_T, scored_T, self.config.prm)

        match order:
            case UpdateOrder.after:
                update = learned(None)
                return scores.with_prm(update.logprobs.logprobs_T), update
            case UpdateOrder.before:
                update = learned(None)
                return scores.with_prm(self._logprobs(roles.prm, batch, batch.prm)), update
            case UpdateOrder.reverse:
                scores = scores.with_prm(self._logprobs(roles.prm, batch, batch.prm))
                return scores, learned(scores.prm_logprobs_T)
            case UpdateOrder.none:
                return scores.with_prm(self._logprobs(roles.prm, batch, batch.prm)), None

    def measure_prm(self, index: int) -> dict[str, float]:
        """How well the PRM, as this step leaves it, tells the held-out responses; empty where that is not due."""
        held_out = self.parts.prm_held_out
        if not self.plan.prm or not held_out.due(index, self.config.run.steps, self.config.eval.prm_every):
            return {}
        return held_out.measure(self.prm_and_reference)

    def prm_and_reference(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of the PRM, as it is now, and of its reference, float32 [T] each; a head's logits instead."""
        roles = self.parts.roles
        if self.config.prm.kind is PrmKind.head:
            self.parts.colocation.reads(roles.prm)
            return head_as_log_ratio(roles.prm, batch)
        prm_T = self._logprobs(roles.prm, batch, batch.prm)
        if roles.reference is not None:
            return prm_T, self._logprobs(roles.reference, batch, batch.prm)
        return prm_T, self._logprobs(roles.policy, batch, batch.prm, temperature=self._temperature)

    def update_critic(self, batch: StepBatch, scores: Scores, advantages: Advantages) -> Learning:
        """The clipped value loss towards gae's returns, one optimizer step per mini-batch."""
        critic = self.parts.roles.critic
        assert critic is not None and scores.values_T is not None
        loss = critic_loss(scores.values_T, advantages.returns_T, self.config.advantage.value_clip)
        self.parts.colocation.learns(critic)
        return critic.train_values(batch.critic, loss)

    def update_policy(self, batch: StepBatch, scores: Scores, advantages: Advantages) -> TrainResult:
        """The policy's objective, one optimizer step per mini-batch."""
        config, longest = self.config.policy, self.config.rollout.sampling.max_response_tokens
        weights = loss_weights(config, batch.rollout, scores, batch.policy, longest, self.parts.reduce)
        loss = policy_loss(config, scores, advantages, weights, self.plan.old_logprobs, first=batch.policy[0])
        policy = self.parts.roles.policy
        self.parts.colocation.learns(policy)
        return policy.train(batch.policy, loss, batch.num_local_tokens, temperature=self._temperature)

    @property
    def _temperature(self) -> float:
        """Of the policy's distribution, in sampling and training alike; PRM and reference stay at 1."""
        return self.config.rollout.sampling.temperature

    def _logprobs(
        self, role: Role, batch: StepBatch, minis: Sequence[MiniBatch], *, temperature: float = 1.0
    ) -> Tensor:
        """A role's log-probs of the mini-batches, float32 [T]; 0 for the rest of the batch."""
        micro = [micro for mini in minis for micro in mini.micro]
        self.parts.colocation.reads(role)
        return role.logprobs(micro, batch.num_local_tokens, temperature=temperature).logprobs_T


def train(config: TrainConfig, *, resume: str | None, overwrite: bool) -> int:
    """A whole run on this rank; returns the exit code. What `prime-megatron train` calls."""
    with open_parts(config, resume=resume, overwrite=overwrite) as parts:
        return PrimeTrainer(config, parts).run(resume=resume)
