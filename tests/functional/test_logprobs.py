"""Log-probabilities and entropies: the definition, its gradient, and the memory it may take."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlframe.functional import logprobs

N, H, V = 7, 3, 5
CHUNKS = [1, 3, N, N + 5]


def batch(n=N, h=H, v=V):
    """Hidden states, targets and the weight of a head."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(v, (n,), generator=generator), weight


def chunked(hidden, targets, weight, chunk, temperature=0.7):
    def statistics(h, y):
        return logprobs.from_linear(h, y, weight, None, temperature=temperature)

    return logprobs.chunked(hidden, targets, statistics, chunk=chunk)


@pytest.fixture(autouse=True, params=[2, 5, 1024])
def tile(request, monkeypatch):
    """Columns of the vocabulary at a time: some, exactly all, more than there are."""
    monkeypatch.setattr(logprobs, "_CPU_TILE", request.param)
    return request.param


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_from_logits_by_hand(temperature):
    # z/τ = (0, log 3): p = (1/4, 3/4), H = log(4)/4 + log(4/3)·3/4
    logits = torch.tensor([[0, temperature * math.log(3)]] * 2, dtype=torch.float64)
    logp, entropy = logprobs.from_logits(logits, torch.tensor([0, 1]), temperature=temperature)
    assert logp.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)])
    assert entropy.tolist() == pytest.approx([math.log(4) / 4 + math.log(4 / 3) * 3 / 4] * 2)


def test_the_result_is_the_gathered_log_softmax_and_minus_the_sum_of_p_log_p():
    hidden, targets, weight = batch()
    logp = ((hidden @ weight.T) / 0.7).log_softmax(-1)
    found = chunked(hidden, targets, weight, chunk=3)
    torch.testing.assert_close(found[0], logp[range(N), targets])
    torch.testing.assert_close(found[1], -(logp.exp() * logp).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite_through_the_head_too(dtype):
    # What it keeps for its backward pass is exp(z - m), which is 0 for two of the three.
    weight = torch.tensor([[1e4], [0.0], [-1e4]], dtype=dtype, requires_grad=True)
    hidden = torch.ones(1, 1, dtype=dtype)
    logp, entropy = logprobs.from_linear(hidden, torch.tensor([1]), weight, None, temperature=1)
    (logp + entropy).sum().backward()
    assert (logp.item(), entropy.item()) == (weight[1].item() - weight[0].item(), 0)
    assert weight.grad.flatten().tolist() == [-1, 1, 0]


def test_extreme_logits_stay_finite_with_their_gradients():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)  # p = (1, 0, 0) in float32
    logp, entropy = logprobs.from_logits(logits, torch.tensor([1]), temperature=1)
    (logp + entropy).sum().backward()
    assert (logp.item(), entropy.item()) == (-1e4, 0)
    assert logits.grad.tolist() == [[-1, 1, 0]]  # onehot(1) - p


def test_a_uniform_distribution_over_a_large_vocabulary():
    size = 151_936  # Qwen's; log p = -log V and H = log V
    found = logprobs.from_logits(torch.full((2, size), 3.0), torch.tensor([0, 7]), temperature=1)
    expected = torch.full((2,), math.log(size))
    torch.testing.assert_close(found, (-expected, expected), rtol=0, atol=3e-5)


def test_a_constant_added_to_the_logits_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1000, generator=generator).mul(1024).round() / 1024
    shifts = torch.tensor([[0.0], [64.0], [1024.0], [-1024.0]])  # the sums are exact
    found = logprobs.from_logits(logits + shifts, torch.arange(4), temperature=1)
    expected = logprobs.from_logits(logits, torch.arange(4), temperature=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


def test_a_bias_and_extreme_hidden_states_agree_with_the_plain_way():
    generator = torch.Generator().manual_seed(0)
    hidden, targets, weight = batch()
    bias = (1e4 * torch.randn(V, generator=generator, dtype=torch.float64)).requires_grad_()
    leaves = (hidden, weight, bias)
    logits = torch.nn.functional.linear(*leaves)
    plain = logprobs.from_logits(logits, targets, temperature=2)
    found = logprobs.from_linear(hidden, targets, weight, bias, temperature=2)
    torch.testing.assert_close(found, plain)
    for expected, ours in zip(plain, found, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(ours.sum(), leaves, retain_graph=True),
            torch.autograd.grad(expected.sum(), leaves, retain_graph=True),
        )


def test_a_frozen_head_passes_the_gradient_on_and_gets_none():
    hidden, targets, weight = batch()
    found, _ = logprobs.from_linear(hidden, targets, weight.detach(), None, temperature=1)
    expected, _ = logprobs.from_linear(hidden, targets, weight, None, temperature=1)
    (ours,) = torch.autograd.grad(found.sum(), [hidden])
    (theirs,) = torch.autograd.grad(expected.sum(), [hidden])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("a", "b"), [(1, 0), (0, 1), (2, 3)])
def test_gradients_agree_with_finite_differences(chunk, a, b):
    hidden, targets, weight = batch()

    def mixture(hidden, weight):
        logp, entropy = chunked(hidden, targets, weight, chunk)
        return (a * logp if a else 0) + (b * entropy if b else 0)

    assert torch.autograd.gradcheck(mixture, (hidden, weight))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_chunk_size_changes_nothing(chunk):
    logits, targets, _ = batch(h=V)  # the hidden states are the logits: no matmul, no rounding

    def run(chunk):
        leaf = logits.detach().clone().requires_grad_()
        found = logprobs.chunked(
            leaf, targets, lambda z, y: logprobs.from_logits(z, y, temperature=0.7), chunk=chunk
        )
        (found[0] * found[1]).sum().backward()
        return *found, leaf.grad

    for expected, found in zip(run(N), run(chunk), strict=True):
        assert torch.equal(found, expected)


def test_the_values_are_the_same_without_autograd():
    hidden, targets, weight = batch()
    expected = chunked(hidden, targets, weight, chunk=3)
    with torch.no_grad():
        found = chunked(hidden, targets, weight, chunk=3)
    assert all(map(torch.equal, found, expected))


def test_no_tokens_give_no_numbers_and_a_gradient_of_zero():
    hidden, targets, weight = batch(n=0)
    logp, entropy = chunked(hidden, targets, weight, chunk=3)
    assert (logp.shape, entropy.shape) == ((0,), (0,))
    (logp.sum() + entropy.sum()).backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_results(dtype):
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(4)
    found = logprobs.from_logits(logits, targets, temperature=0.7)
    expected = logprobs.from_logits(logits.double(), targets, temperature=0.7)
    for narrow, wide in zip(found, expected, strict=True):
        assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-6, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(4)
    expected = logprobs.from_logits(logits, targets, temperature=0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logprobs.from_logits(logits, targets, temperature=0.7)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("chunk", "forward", "backward"),
    [(1, [1] * 7, [1] * 6), (3, [3, 3, 1], [3, 3]), (N, [N], []), (N + 5, [N], [])],
)
def test_the_head_runs_again_for_all_chunks_but_the_last(chunk, forward, backward):
    hidden, targets, weight = batch()
    calls = []

    def statistics(h, y):
        calls.append(len(h))
        return logprobs.from_linear(h, y, weight, None, temperature=1)

    found, _ = logprobs.chunked(hidden, targets, statistics, chunk=chunk)
    assert calls == forward
    found.sum().backward()
    assert calls == forward + backward


class LargestOutput(TorchDispatchMode):
    """How many elements the largest tensor had that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


def largest(compute):
    hidden, targets, weight = batch(n=64, h=5, v=50)
    with LargestOutput() as probe:
        logp, entropy = compute(hidden, targets, weight)
        (logp.sum() + entropy.sum()).backward()
    return probe.numel


def naive(hidden, targets, weight):
    logp = (hidden @ weight.T).log_softmax(-1)
    return logp.gather(-1, targets[:, None]), -(logp.exp() * logp).sum(-1)


def test_no_tensor_is_larger_than_one_chunk_of_logits():
    assert largest(naive) == 64 * 50
    assert largest(lambda *x: chunked(*x, chunk=8)) <= 8 * 50


def kept_for_backward(chunk):
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        chunked(*batch(n=64, h=5, v=50), chunk)
    return sum(sizes)


def test_one_chunk_of_logits_waits_for_the_backward_pass():
    tiles = -(-50 // logprobs._CPU_TILE)
    overhead = 50 * 5 + 64 * (5 + 4 + tiles)  # the weight, and a few numbers a token
    assert 64 * 50 <= kept_for_backward(64) <= 64 * 50 + overhead
    assert 8 * 50 <= kept_for_backward(8) <= 8 * 50 + overhead
