"""The algorithm: implicit PRM, advantages, policy loss. Symbols as in arXiv 2502.01456."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from prime_megatron.config.base import Free, Section
from prime_megatron.config.health import CollapseAction, HealthConfig
from prime_megatron.config.teacher import TeacherAlgorithm


class PrmKind(StrEnum):
    """What judges the tokens of a response."""

    implicit = "implicit"
    """A language model against its reference: r_t = beta * log(prm / ref) (the paper)."""
    head = "head"
    """A model with a head of one value: r_t = v_t - v_{t-1}, v_t its probability of success after token t."""
    teacher = "teacher"
    """A frozen language model of the policy's tokenizer: T_t = log P_T(y_t) - log P_old(y_t)."""


class UpdateOrder(StrEnum):
    """When the PRM learns within a step, against when it scores."""

    after = "after"
    """One forward: the scores are those of the update's own forward (the paper's published script)."""
    before = "before"
    """Update, then score with the new weights (double forward; the recipe's default)."""
    reverse = "reverse"
    """Score, share the scores among siblings, then update; the dpo and bon losses need it."""
    none = "none"
    """Score only: a frozen PRM."""


class PrmLossKind(StrEnum):
    """What the PRM learns from the outcome."""

    ce = "ce"
    """Binary cross-entropy of sigmoid(beta * sum_t q_t) against the outcome."""
    ce_intercept = "ce_intercept"
    """ce with the prompt's difficulty as intercept: sigmoid(beta * sum_t q_t + logit of the siblings' mean outcome)."""
    dpo = "dpo"
    """-log sigmoid of beta times the signed difference to the siblings of the opposite outcome (detached)."""
    bon_acc = "bon_acc"
    """dpo weighted by best-of-n's n * CDF^(n-1) over outcomes."""
    bon_rm = "bon_rm"
    """dpo weighted by best-of-n's n * CDF^(n-1) over PRM scores."""
    prefix_value = "prefix_value"
    """Every prefix is to tell the outcome: a margin on beta times the mean of q over the prefix (IPVRM)."""
    prefix_ce = "prefix_ce"
    """Of a head: binary cross-entropy of its value of every beginning of a response against the outcome."""
    last_ce = "last_ce"
    """Of a head: the same of its value of the whole response alone."""


class Granularity(StrEnum):
    """Where process rewards sit."""

    token = "token"
    step = "step"
    """Summed over each reasoning step, on the step's last token."""
    whole = "whole"
    """Summed over the response, on its last token."""


class PrmReference(StrEnum):
    """The denominator of the implicit reward."""

    freeze = "freeze"
    """The PRM's own initial weights."""
    policy = "policy"
    """The policy before this step's update (old_logprobs)."""


class RewardNorm(StrEnum):
    """How process rewards are scaled over the global batch."""

    none = "none"
    batch_norm = "batch_norm"
    """Divided by (max over samples and t of |sum_{s>=t} r_s|) + 1e-6."""


class Estimator(StrEnum):
    """How rewards become advantages."""

    rloo = "rloo"
    grpo = "grpo"
    reinforce = "reinforce"
    reinforce_pp = "reinforce++"
    gae = "gae"
    """PPO with a critic."""
    prime_value = "prime_value"
    """The PRM as the value function: A = o - v(y_<t), v = cumulative beta * q (paper, appendix B.3)."""
    prefix_td = "prefix_td"
    """grpo's outcome plus GAE over the process rewards, read as differences of the prefix's value (IPVRM)."""
    spro = "spro"
    """grpo's outcome plus what the policy has gained on its reference up to a token, against its siblings at the same
    token (SPRO): the policy is its own process reward, no PRM is built."""


class LeaveOneOut(StrEnum):
    """The process baseline of RLOO; both are exact in the mean of a sequence."""

    code = "code"
    """K/(K-1) r_t - 1/(K-1) sum_j m_j, as in both public codes."""
    paper = "paper"
    """r_t - mean_{j != i} m_j, equation 5."""


class KlPlace(StrEnum):
    """Where the policy's KL penalty against its reference enters."""

    none = "none"
    reward = "reward"
    loss = "loss"


class KlEstimator(StrEnum):
    """Schulman's estimators of KL(policy || reference) from one sample."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class LossAggregation(StrEnum):
    """How the losses of a mini-batch's tokens become one number; N its sequences, all ranks'."""

    token_mean = "token_mean"
    """Mean over tokens: long responses count more (DAPO)."""
    sequence_mean = "sequence_mean"
    """Mean over sequences of the mean over each one's tokens (GRPO, GSPO)."""
    sequence_sum = "sequence_sum"
    """Mean over sequences of the sum over each one's tokens."""
    constant_length = "constant_length"
    """Sum over tokens, divided by N * rollout.sampling.max_response_tokens (Dr.GRPO)."""


class ImportanceLevel(StrEnum):
    """Of what the probability ratio of trainer to engine is taken."""

    token = "token"
    sequence = "sequence"
    """The whole response: the product over its tokens."""
    geometric = "geometric"
    """The whole response: the geometric mean over its tokens."""


class ImportanceMode(StrEnum):
    """What a ratio of trainer to engine does."""

    cap = "cap"
    """Weighs the token, at most by importance_cap (truncated importance sampling)."""
    mask = "mask"
    """Weighs the token, and by 0 outside [importance_floor, importance_cap] (IcePop)."""
    reject = "reject"
    """What lies outside [importance_floor, importance_cap] leaves the loss and its mean; the rest weighs 1."""


class PrmObjective(Section):
    """What the implicit PRM learns."""

    beta: PositiveFloat = 0.05
    """Reward coefficient: r = beta * log(prm / ref)."""
    loss: PrmLossKind = PrmLossKind.ce
    """What the PRM learns from the outcome."""
    passes: PositiveInt = 1
    """Times that the PRM learns from a step's batch, each num_mini_batches optimizer steps; with update after the
    scores are those of the first pass, so that no response is scored by a PRM that has learnt from its outcome."""
    bon_n: PositiveInt = 4
    """n of the best-of-n losses."""
    margin: PositiveFloat | None = None
    """m of prefix_value: beta times the value of every prefix is to reach m, of a wrong response -m; none: beta / 2."""
    adaptive_boundary: bool = False
    """prefix_value counts from the prompt's difficulty: the logit of the siblings' mean outcome is added to every
    prefix (IPVRM's ADB)."""
    difficulty_weights: bool = False
    """prefix_value weighs a right response by the share of wrong siblings and a wrong one by that of right ones, with
    mean 1 over the siblings (IPVRM's DLW)."""

    @property
    def compares_siblings(self) -> bool:
        """Whether the loss of a response depends on its siblings."""
        if self.loss is PrmLossKind.prefix_value:
            return self.adaptive_boundary or self.difficulty_weights
        return self.loss not in (PrmLossKind.ce, PrmLossKind.prefix_ce, PrmLossKind.last_ce)


class PrmAlgorithm(PrmObjective):
    """The PRM: its reward and its loss (section 3 of the paper)."""

    kind: PrmKind = PrmKind.implicit
    """What judges the tokens; a head has the losses prefix_ce and last_ce and is not scaled by beta, a teacher has no
    loss: docs/process-rewards.md."""
    teacher: TeacherAlgorithm = TeacherAlgorithm()
    """What a teacher's judgement does (kind teacher)."""
    update: UpdateOrder = UpdateOrder.after
    """When the PRM learns against when it scores."""
    reference: PrmReference = PrmReference.freeze
    """The denominator of the implicit reward."""
    granularity: Granularity = Granularity.token
    """Where process rewards sit."""
    step_delimiter: str = "\n\n"
    """Text that ends a reasoning step (granularity=step): a token that contains it closes the step."""
    softmin_temperature: PositiveFloat | None = None
    """T of PURE's min-form (granularity=step): a step's reward r is multiplied by its softmin weight exp(-r / T) over
    the sum of that over the response's steps, so that a return tends to the least reward; none: no weights."""
    scale_by_beta: bool = True
    """Process reward beta * q (paper, recipe) or q (original)."""
    ratio_floor: float = Field(default=0.0, ge=0.0, lt=1.0)
    """e of the floored log-ratio q = log((prm + e) / (ref + e)) in the reward, which then stays within
    log((1 + e) / e); the PRM's loss keeps the bare one. 0: the bare log-ratio, as in the paper and both public codes,
    unbounded on tokens that the reference holds impossible. docs/process-rewards.md says when to set it."""
    norm: RewardNorm = RewardNorm.batch_norm
    """How process rewards are scaled over the global batch."""
    smoothing_lambda: float = Field(default=0.0, ge=0.0, le=1.0)
    """lambda of r_t = q_t + lambda * r_{t+1}; 0 turns it off."""
    use_gt: bool = False
    """Replace the last q of a response by outcome - sum of the others (recipe's prime_use_gt)."""
    health: HealthConfig = HealthConfig()
    """Whether the PRM is still right."""
    on_collapse: CollapseAction = CollapseAction.warn
    """What the run does while prm.health's alarm is on, from the step after the check."""


class AdvantageAlgorithm(Section):
    """From rewards to advantages (equation 5, appendix B.3)."""

    estimator: Estimator = Estimator.rloo
    """How rewards become advantages; gae has one value function, so its gamma_process and gamma_outcome must agree."""
    process_weight: float = Field(default=1.0, ge=0.0)
    """Factor on the process source; 0 leaves outcome-only training, which needs no PRM."""
    outcome_weight: float = Field(default=1.0, ge=0.0)
    """Factor on the outcome source."""
    leave_one_out: LeaveOneOut = LeaveOneOut.paper
    """Form of the process baseline in RLOO."""
    gamma_process: float = Field(default=1.0, ge=0.0, le=1.0)
    """Discount of process rewards."""
    gamma_outcome: float = Field(default=1.0, ge=0.0, le=1.0)
    """Discount of the outcome reward."""
    gae_lambda: float = Field(default=1.0, ge=0.0, le=1.0)
    """lambda of GAE (estimator=gae and prefix_td)."""
    value_clip: PositiveFloat | None = 0.5
    """The critic's new value stays within this of its old one in the loss (estimator=gae); none: off."""
    whiten: bool = True
    """Subtract the mean and divide by the deviation over all valid tokens of the global batch; reinforce++ always."""
    scale_by_deviation: bool = True
    """grpo, prefix_td and spro divide by the siblings' deviation; false: by nothing, as Dr.GRPO."""
    overlong_buffer: PositiveInt | None = None
    """Tokens before rollout.sampling.max_response_tokens over which a response's outcome falls linearly (DAPO's soft
    overlong punishment), for the outcome source alone: filter, PRM and metrics see the outcome as it was verified.
    none: off."""
    overlong_penalty: PositiveFloat = 1.0
    """What the outcome has lost at the limit."""
    impl: Free[Literal["auto", "triton", "torch", "naive"]] = "auto"
    """Implementation of rewards and advantages: auto takes the fused path where it has what the config asks for,
    triton and torch insist on it, naive takes the definition. They agree to rounding."""


class PolicyAlgorithm(Section):
    """The policy's loss: objective, aggregation, entropy bonus, KL, correction for the engine."""

    objective: str = "ppo"
    """ppo, dual_clip, gspo, cispo (prime_megatron/algo/objectives), or package.module:function of one's own:
    docs/policy-objectives.md."""
    clip_low: PositiveFloat = 0.2
    """Lower clip of the ratio: 1 - clip_low; for cispo of the weight, where 1 means none."""
    clip_high: PositiveFloat = 0.2
    """Upper clip of the ratio: 1 + clip_high."""
    dual_clip: float = Field(default=3.0, gt=1.0)
    """c of dual_clip: where the advantage A is negative, the loss is at most c * |A|."""
    loss_aggregation: LossAggregation = LossAggregation.token_mean
    """How the tokens' losses become one number."""
    mask_truncated: bool = False
    """Responses cut at the length limit leave the policy's loss and its mean (they stay their siblings' baseline)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_place: KlPlace = KlPlace.none
    """Where the KL penalty against the reference enters."""
    kl_coef: float = Field(default=0.0, ge=0.0)
    """Weight of the KL penalty."""
    kl_estimator: KlEstimator = KlEstimator.k3
    """Estimator of the KL penalty."""
    importance_cap: PositiveFloat | None = None
    """Upper bound of the ratio of the trainer's probability to the engine's, which corrects the loss for an engine that
    computes otherwise; none: no correction."""
    importance_floor: float = Field(default=0.0, ge=0.0)
    """Lower bound of that ratio, of the modes mask and reject."""
    importance_level: ImportanceLevel = ImportanceLevel.token
    """Of what the ratio is taken."""
    importance_mode: ImportanceMode = ImportanceMode.cap
    """What the ratio does."""
