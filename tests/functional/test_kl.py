"""KL estimators: hand tables, and expectations summed exactly over a small vocabulary."""

import math

import pytest
import torch

from rlframe.functional import kl

LOG2 = math.log(2)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)


def exact(p, q):
    """KL(p ‖ q) by the library's own `full`, itself checked by hand below."""
    return kl.full(p.log()[None], q.log()[None], temperature=1).squeeze()


def mean(estimate, p=P, q=Q):
    """The expectation over a ~ p."""
    return (p * estimate(p.log(), q.log())).sum()


def variance(estimate, p=P, q=Q):
    return (p * (estimate(p.log(), q.log()) - mean(estimate, p, q)) ** 2).sum()


@pytest.mark.parametrize(
    ("logp", "logq", "expected"),
    [
        # x = log 2, π_ref/π = 1/2: k3 = 1/2 - 1 + log 2
        (-LOG2, -2 * LOG2, {"k1": LOG2, "k2": LOG2**2 / 2, "k3": LOG2 - 0.5, "abs": LOG2}),
        # x = -log 2, π_ref/π = 2: k3 = 2 - 1 - log 2
        (-2 * LOG2, -LOG2, {"k1": -LOG2, "k2": LOG2**2 / 2, "k3": 1 - LOG2, "abs": LOG2}),
        # x = 3: k3 = e^-3 + 2
        (-1.0, -4.0, {"k1": 3, "k2": 4.5, "k3": math.exp(-3) + 2, "abs": 3}),
    ],
)
def test_estimators_by_hand(logp, logq, expected):
    logp, logq = torch.tensor([[[logp]], [[logq]]], dtype=torch.float64)
    found = {name: estimate(logp, logq).item() for name, estimate in kl.ESTIMATORS.items()}
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_full_by_hand(temperature):
    # z/τ = (0, 0) and (0, log 3): π = (1/2, 1/2), π_ref = (1/4, 3/4)
    # KL(π‖π_ref) = log(2)/2 + log(2/3)/2 = log(4/3)/2; the other way round log(3)·3/4 - log 2
    even = torch.zeros(1, 2, dtype=torch.float64)
    skewed = torch.tensor([[0, temperature * math.log(3)]], dtype=torch.float64)
    there = kl.full(even, skewed, temperature=temperature)
    back = kl.full(skewed, even, temperature=temperature)
    assert there.tolist() == pytest.approx([math.log(4 / 3) / 2])
    assert back.tolist() == pytest.approx([math.log(3) * 3 / 4 - LOG2])


def test_full_of_bfloat16_logits_is_that_of_the_same_numbers_in_float32():
    logits = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = kl.full(*logits, temperature=0.7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, kl.full(*logits.float(), temperature=0.7))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    torch.testing.assert_close(mean(kl.ESTIMATORS[name]), exact(P, Q), rtol=1e-12, atol=0)


def test_abs_is_an_upper_bound_in_expectation():
    assert mean(kl.absolute) > 1.5 * exact(P, Q)


def test_k2_is_biased_by_the_power_three_halves_of_kl():
    direction = torch.tensor([1.0, 0.0, -1.5], dtype=torch.float64)

    def measure(step):
        q = (P.log() + step * direction).softmax(0)
        return exact(P, q), mean(kl.k2, P, q) - exact(P, q)

    (distance, bias), (near, near_bias) = measure(0.02), measure(0.01)
    assert (distance / near).item() == pytest.approx(4, rel=0.03)  # KL is of second order
    assert (bias / near_bias).item() == pytest.approx(8, rel=0.03)  # and the bias of third


def test_k3_varies_less_than_k1_while_the_policies_are_close():
    assert variance(kl.k3) < 0.1 * variance(kl.k1)


def test_only_k1_can_be_negative():
    found = {name: estimate(P.log(), Q.log()).min() for name, estimate in kl.ESTIMATORS.items()}
    assert {name for name, least in found.items() if least < 0} == {"k1"}
    assert exact(P, Q) > 0


def test_k3_of_close_policies_is_accurate_in_float32():
    x = torch.tensor([1e-4, -1e-4, 1e-3, -1e-3])
    found = kl.k3(x, torch.zeros(4))
    assert (found >= 0).all()
    torch.testing.assert_close(found, x**2 / 2, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_every_estimate_of_equal_policies_is_exactly_zero(name):
    logprobs = P.log().float()
    assert (kl.ESTIMATORS[name](logprobs, logprobs.clone()) == 0).all()


def test_the_exact_divergence_of_equal_policies_is_zero():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    assert (kl.full(logits, logits.clone(), temperature=0.7) == 0).all()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-19.0, math.exp(19) - 20),  # not clamped yet
        (-1e4, math.exp(20) - 1 - 1e4),
        (19.0, math.exp(-19) + 18),
        (1e4, math.exp(-20) - 1 + 1e4),
    ],
)
def test_k3_stays_finite_at_extreme_ratios(x, expected):
    found = kl.k3(torch.tensor([x]), torch.zeros(1))  # float32, where exp(1e4) is infinite
    assert found.item() == pytest.approx(expected, rel=1e-6)


OLD = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
"""The policy that sampled: neither `P`, after some optimiser steps, nor the reference."""


def slope(loss_of, sampler=P):
    """The gradient of E_{a ~ sampler}[loss_of(log π(a), log π_ref(a))] through the loss alone, at P."""
    logits = P.log().requires_grad_()
    loss = loss_of(logits.log_softmax(0), Q.log())
    (sampler * loss).sum().backward()
    return logits.grad


def exact_slope(divergence):
    logits = P.log().requires_grad_()
    divergence(logits[None], Q.log()[None]).sum().backward()
    return logits.grad


def kl_loss(name, sampler):
    """The engine's KL loss of tokens that `sampler` drew."""

    def loss(logp, logq):
        ratio = (logp - sampler.log()).exp()  # with gradient, as the policy's loss has it
        return kl.straight_through(kl.ESTIMATORS[name](logp, logq), logp, logq, ratio)

    return loss


@pytest.mark.parametrize("sampler", [P, OLD], ids=["first step", "later step"])
@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_straight_through_has_the_value_of_the_estimate_and_the_gradient_of_kl(name, sampler):
    """In expectation over the samples of the old policy, the gradient at the new one."""
    loss = kl_loss(name, sampler)
    assert torch.equal(loss(P.log(), Q.log()), kl.ESTIMATORS[name](P.log(), Q.log()))
    wanted = exact_slope(lambda z, ref: kl.full(z, ref, temperature=1))
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(slope(loss, sampler), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [torch.ones(3), (P / OLD).clamp(0.8, 1.2)], ids=["no", "clipped"])
def test_without_the_full_ratio_a_later_step_would_follow_another_gradient(ratio):
    found = slope(lambda p, q: kl.straight_through(kl.k2(p, q), p, q, ratio.double()), OLD)
    wanted = exact_slope(lambda z, ref: kl.full(z, ref, temperature=1))
    assert (found - wanted).norm() > 0.1 * wanted.norm()


def test_a_large_ratio_takes_no_digits_from_the_value():
    x = torch.tensor([20.0])
    loss = kl.straight_through(x, x.clone().requires_grad_(), torch.zeros(1), x.exp())
    assert loss.item() == 20.0


def test_k1_as_a_loss_has_no_gradient_in_expectation():
    torch.testing.assert_close(slope(kl.k1), torch.zeros_like(P), rtol=0, atol=1e-12)


def test_k2_as_a_loss_has_the_gradient_of_kl_while_the_policy_is_the_one_that_sampled():
    wanted = exact_slope(lambda z, ref: kl.full(z, ref, temperature=1))
    torch.testing.assert_close(slope(kl.k2), wanted, rtol=1e-10, atol=1e-12)
    assert (slope(kl.k2, OLD) - wanted).norm() > 0.1 * wanted.norm()


def test_k3_as_a_loss_has_the_gradient_of_the_reverse_divergence():
    wanted = exact_slope(lambda z, ref: kl.full(ref, z, temperature=1))
    torch.testing.assert_close(slope(kl.k3), wanted, rtol=1e-10, atol=1e-12)


def test_abs_as_a_loss_has_the_gradient_of_no_divergence_between_the_policies():
    for wanted in (
        exact_slope(lambda z, ref: kl.full(z, ref, temperature=1)),
        exact_slope(lambda z, ref: kl.full(ref, z, temperature=1)),
    ):
        assert (slope(kl.absolute) - wanted).norm() > 0.1 * wanted.norm()
