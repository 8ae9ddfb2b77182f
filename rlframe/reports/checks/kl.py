"""KL between policy and reference, and the coefficient that holds it."""

from __future__ import annotations

from rlframe.reports.finding import Finding
from rlframe.reports.history import EDGE, History

FAR = 0.5
"""Nats per token at which a policy has left its reference. Quickstart ends at 0.25; a learning rate of
1e-3 instead of its 3e-4 leaves about 1, whatever the coefficient."""

FAR_FROM_TARGET = 3.0
"""Times the target; an adaptive controller of a healthy run stays below 1.5 once it has settled."""

NEGATIVE = -0.005
"""Nats per token. The estimator k1 may be negative by chance, but hardly over 5 updates."""

FLAT = 0.05
"""Nats per response at which the policy is practically its reference; quickstart has 1 in update 3."""

HELD = 0.1
"""Nats per token below which a coefficient of 0 has done no harm so far."""

RISEN = 1.5
"""Times by which the coefficient has risen."""

NO_LONGER_FALLS = 0.9
"""Later KL per token as a fraction of the earlier one."""

SHORTENED = 0.85
"""Later response length as a fraction of the earlier one."""

USUAL_COEFFICIENT = 0.05
"""The default of the adaptive controller, and the value used most often in practice."""


def coefficient_zero(h: History) -> Finding | None:
    """Nothing holds the policy near its reference."""
    kl, coefficient = h.last("kl/nats_per_token"), h.last("kl/coefficient")
    if coefficient is None or coefficient.value != 0 or kl is None:
        return None
    return Finding(
        "coefficient_zero",
        "serious" if kl.value > HELD else "warning",
        "The KL coefficient is 0: nothing holds the policy near the reference.",
        "The recipe turns the KL penalty off, which is meant for rewards that cannot be gamed.",
        "Set a coefficient, large at first: it is easier to lower it than to repair a policy.",
        "kl.controller.coefficient",
        USUAL_COEFFICIENT,
        {"kl/coefficient": (coefficient,), "kl/nats_per_token": (kl,)},
    )


def kl_negative(h: History) -> Finding | None:
    """The estimate is negative on average, which the KL between two distributions cannot be."""
    kl = h.last("kl/nats_per_token")
    if kl is None or len(h.rows) < EDGE or kl.value > NEGATIVE:
        return None
    truncated = any(h.option(f"rollout.{name}") for name in ("top_k", "top_p", "min_p"))
    return Finding(
        "kl_negative",
        "serious",
        "The KL to the reference is negative on average, so that the penalty is a bonus.",
        "Tokens are sampled from another distribution than the policy's: "
        + ("the recipe truncates it." if truncated else "the sampler computes something else."),
        "Sample from the whole policy with the built-in sampler.",
        "rollout.top_p" if truncated else "rollout.sampler.type",
        1.0 if truncated else "builtin",
        {"kl/nats_per_token": (kl,)},
    )


def learning_rate_floor(h: History) -> Finding | None:
    """The coefficient rises, responses shorten, and KL per token does not fall."""
    metrics = ("kl/coefficient", "kl/nats_per_token", "response/length_mean")
    coefficient, kl, length = (h.trend(metric) for metric in metrics)
    before = h.settled("kl/nats_per_token")
    if not coefficient or not kl or not length or not before:
        return None
    if (
        coefficient[1].value < RISEN * coefficient[0].value
        or kl[1].value < max(NO_LONGER_FALLS * before.value, FAR)
        or length[1].value > SHORTENED * length[0].value
    ):
        return None
    return Finding(
        "learning_rate_floor",
        "serious",
        "The KL coefficient rises, but KL per token does not fall and responses get shorter.",
        "The learning rate is too high: each update moves the policy further than the penalty "
        "pulls it back, and shorter responses are the only way to a smaller sum.",
        "Lower the learning rate. A small model had a floor of about 1 nat per token with 1e-3, "
        "where 3e-4 held the target.",
        "ppo.learning_rate",
        h.learning_rate / 3,
        {"kl/coefficient": coefficient, "kl/nats_per_token": kl, "response/length_mean": length},
    )


def kl_runaway(h: History) -> Finding | None:
    """KL is far from the reference, or from the controller's target, and still grows."""
    metric, limit = distance(h, FAR_FROM_TARGET)
    kl, coefficient = h.trend(metric), h.last("kl/coefficient")
    if kl is None or coefficient is None or kl[1].value < max(limit, kl[0].value):
        return None
    return Finding(
        "kl_runaway",
        "serious",
        f"KL to the reference has grown to {kl[1].value:.3g} {words(metric)}, beyond {limit:.3g}.",
        "The KL coefficient is too small for this reward, or the controller too slow for this run.",
        "Raise the coefficient; for an adaptive controller, also shorten kl.controller.horizon.",
        *raised_coefficient(h),
        {metric: kl, "kl/coefficient": (coefficient,)},
    )


def kl_flat(h: History) -> Finding | None:
    """The policy does not leave the reference, and the score does not rise."""
    kl = h.last("objective/kl")
    if kl is None or not h.long_enough or abs(kl.value) > FLAT or h.score_rise() > 0:
        return None
    return Finding(
        "kl_flat",
        "warning",
        "The policy is still its reference: KL is about 0 and the score does not rise.",
        "The learning rate is too low, or the KL coefficient too large.",
        "Raise the learning rate; if KL is still flat, lower the KL coefficient.",
        "ppo.learning_rate",
        h.learning_rate * 10,
        {"objective/kl": (kl,)},
    )


def controller_at_bound(h: History) -> Finding | None:
    """The controller wants a coefficient that the recipe does not allow."""
    coefficient = h.last("kl/coefficient", updates=3)
    low, high = h.option("kl.minimum", 0.0), h.option("kl.maximum", float("inf"))
    if coefficient is None or len(h.rows) < EDGE or h.option("kl.controller.type") == "fixed":
        return None
    if coefficient.value >= high * (1 - 1e-6):
        what, key, value = "upper", "ppo.learning_rate", h.learning_rate / 3
        cause = "The penalty does not hold KL at the target: the learning rate may be too high."
        remedy = "Lower the learning rate, or raise kl.maximum."
    elif 0 < coefficient.value <= low * (1 + 1e-6):
        what, key, value = "lower", "kl.minimum", low / 10
        cause = "KL stays below the target even with the smallest coefficient that is allowed."
        remedy = "Lower the bound, or the target if KL is meant to stay where it is."
    else:
        return None
    return Finding(
        "controller_at_bound",
        "warning",
        f"The KL coefficient has stayed at its {what} bound in the last 3 updates.",
        cause,
        remedy,
        key,
        value,
        {"kl/coefficient": (coefficient,)},
    )


def distance(h: History, times: float) -> tuple[str, float]:
    """(the metric that says how far the policy is from the reference, what is too far).

    Args:
      h: of the run.
      times: the controller's target, which is too far; without a target `FAR` is.
    """
    target = h.option("kl.controller.target")
    if target is None:
        return "kl/nats_per_token", FAR
    return f"kl/{h.option('kl.controller.unit', 'nats_per_response')}", times * target


def words(metric: str) -> str:
    """`nats per token` for `kl/nats_per_token`."""
    return metric.removeprefix("kl/").replace("_", " ")


def raised_coefficient(h: History) -> tuple[str, float]:
    """(the key of the KL coefficient, three times what it is now, or a usual value if that is more)."""
    now = h.last("kl/coefficient")
    key = "coefficient" if h.option("kl.controller.type") == "fixed" else "initial"
    return f"kl.controller.{key}", max(3 * (now.value if now else 0.0), USUAL_COEFFICIENT)
