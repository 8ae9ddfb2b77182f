"""PPO after Ziegler et al. 2019 and Ouyang et al. 2022, one text at a time, without the engine."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev, pvariance
from typing import Any

import torch
from torch import Tensor, nn


class Network:
    """A transformers model of plain tensors; those named "NAME A" and "NAME B" add `scale` B A."""

    def __init__(self, module: nn.Module, trained: Mapping[str, Tensor], scale: float = 0) -> None:
        self.module, self.scale = module.requires_grad_(False), scale
        self.trained = {n: t.detach().clone().requires_grad_() for n, t in trained.items()}

    def __call__(self, ids: Sequence[int], first: int, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """log π over the vocabulary before each token from number `first` on, and hidden states."""
        weights = {n: t for n, t in self.trained.items() if not n.endswith((" A", " B"))}
        for name in (n.removesuffix(" A") for n in self.trained if n.endswith(" A")):
            added = self.trained[f"{name} B"] @ self.trained[f"{name} A"]
            weights[name] = self.module.get_parameter(name) + self.scale * added
        given = {"output_hidden_states": True, "use_cache": False, "input_ids": torch.tensor([ids])}
        out: Any = torch.func.functional_call(self.module, weights, kwargs=given)
        logits = out.logits[:, first - 1 : -1]  # nobody asks a critic for them
        return torch.log_softmax(logits / tau, -1)[0], out.hidden_states[-1][0, first - 1 : -1]


class PPO:
    """A text is a namespace: prompt and response (ids), ended, scores (name -> per token, or None where
    it is not judged). A critic without a trunk shares the policy's. `auxiliary`: name ->
    (coefficient, step -> texts with their context; None: the rollout's). `control`: (coefficient,
    memory, KL, responses) -> both."""

    def __init__(self, policy: Network, reference: Network, critic: Network, settings: Any,
                 auxiliary: Mapping[str, Any], control: Callable[..., Any]) -> None:  # fmt: skip
        self.policy, self.reference, self.critic, self.s = policy, reference, critic, settings
        self.auxiliary, self.control = auxiliary, control
        named = {"policy": policy.trained, "critic": critic.trained}
        self.trained = {f"{who} {n}": t for who, owned in named.items() for n, t in owned.items()}
        self.moments = {n: (0 * t.detach(), 0 * t.detach()) for n, t in self.trained.items()}
        self.coefficient, self.memory = settings.coefficient, settings.memory
        self.updates, self.steps, self.taken, self.history = (
            0,
            0,
            0,
            defaultdict[str, list[float]](list),
        )

    def look(self, text: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(log π over the vocabulary, log π of the response's tokens, values)."""
        ids, first = [*text.prompt, *text.response], len(text.prompt)
        every, hidden = self.policy(ids, first, self.s.temperature)
        hidden = self.critic(ids, first)[1] if list(self.critic.module.children()) else hidden
        values = hidden @ self.critic.trained["score.weight"][0]
        return every, every[range(len(text.response)), text.response], values

    @torch.no_grad()
    def see(self, text: Any) -> None:
        """Note what both policies and the critic say of a text before the update."""
        every, text.logprobs, text.values = self.look(text)
        ids, first = [*text.prompt, *text.response], len(text.prompt)
        others, _ = self.reference(ids, first, self.s.temperature)
        text.score, text.plain = torch.zeros_like(text.values), 0.0
        text.reference = others[range(len(text.response)), text.response]
        exact, x = (every.exp() * (every - others)).sum(-1), text.logprobs - text.reference
        text.kl = exact if self.s.estimator == "full" else estimate(self.s.estimator, x)
        kept = (
            every.topk(self.s.top_k or every.shape[-1]).values.exp().sum(-1)
        )  # π of what was left
        text.sampler, text.importance = text.logprobs - kept.log(), torch.ones_like(kept)
        if self.s.correction != "none":  # π / q = kept, which no upper bound of 1 or more touches
            low = 1 / self.s.limit if self.s.correction == "mask" else 0.0
            text.importance = kept.where(kept >= low, 0)

    def mix(self, texts: Sequence[Any], out: dict[str, float]) -> None:
        """Weighted token rewards; what normalises them is measured over all responses so far."""
        used = {name: one for name, one in self.s.rewards.items() if one[0] != 0}
        for text in texts:
            judged = [text.scores[name] is not None for name in used]
            text.valid = any(judged) and not any(
                none == "invalid" and text.scores[name] is None
                for name, (_, _, none) in used.items()
            )
        valid = sum(text.valid for text in texts)
        out["response/valid_share"] = valid / len(texts)
        for name, (weight, transform, _) in self.s.rewards.items():
            found = [text for text in texts if text.scores[name] is not None]
            raw, seen = [math.fsum(text.scores[name]) for text in found], self.history[name]
            out |= {f"reward/{name}/raw": fmean(raw), f"reward/{name}/std": pstdev(raw)}
            out[f"reward/{name}/judged_share"] = len(found) / len(texts)
            found = [text for text in found if text.valid]
            rows = [torch.tensor(text.scores[name], dtype=torch.float64) for text in found]
            raw = [float(row.sum()) for row in rows]
            seen += raw
            if transform != "none":
                center, spread = fmean(seen), pstdev(seen)
                out |= {f"reward/{name}/running_mean": center, f"reward/{name}/running_std": spread}
                for row in rows:
                    row[-1] -= center if transform == "running_standardize" else 0
                    row /= spread
            out[f"reward/{name}/weighted"] = (
                weight * math.fsum(float(r.sum()) for r in rows) / valid
            )
            for text, row, plain in zip(found, rows, raw, strict=True):
                text.score, text.plain = text.score + weight * row, text.plain + weight * plain

    def credit(self, texts: Sequence[Any]) -> None:
        """Rewards r = score - β KL, advantages and returns; whitened over all tokens if asked."""
        for text in texts:
            text.rewards = text.score - self.coefficient * text.kl * (self.s.placement == "reward")
        if self.s.whiten_rewards:
            whiten(texts, "rewards", keep_mean=True)
        for text in texts:
            ahead, following, text.advantages = 0.0, 0.0, 0 * text.values
            for t in reversed(range(len(text.response))):
                delta = text.rewards[t] + self.s.gamma * following - text.values[t]
                ahead, following = delta + self.s.gamma * self.s.lam * ahead, text.values[t]
                text.advantages[t] = ahead
            text.returns = text.advantages + text.values
        if self.s.whiten_advantages:
            whiten(texts, "advantages", keep_mean=False)

    def loss(self, texts: Sequence[Any], log: dict[str, list[Tensor]]) -> Tensor:
        """Mean over the tokens of a mini-batch, and the auxiliary losses' means over theirs."""
        s, losses = self.s, []
        for text in texts:
            every, logprobs, values = self.look(text)
            ratio, x = (logprobs - text.logprobs).exp(), logprobs - text.reference
            free = ratio * text.advantages
            held = ratio.clamp(1 - s.clip, 1 + s.clip) * text.advantages
            near = values.clamp(text.values - s.value_clip, text.values + s.value_clip)
            far, near = (values - text.returns) ** 2, (near - text.returns) ** 2
            policy, value = -torch.minimum(free, held), torch.maximum(far, near) / 2
            losses.append(text.importance * policy + s.value_coefficient * value)
            if s.placement == "loss":  # ∇ KL(π ‖ reference) = E_old[ratio x ∇ log π]
                slope = self.coefficient * (text.importance * ratio * x).detach()
                losses[-1] = losses[-1] + slope * logprobs
                log["loss/kl_avg"].append(estimate(s.estimator, x))
            log["policy/approxkl_avg"].append((logprobs - text.logprobs) ** 2 / 2)
            log["policy/clipfrac_avg"].append((held < free).double())
            log["policy/entropy_avg"].append(-(every.exp() * every).sum(-1))
            log["loss/policy_avg"].append(policy)
            log["loss/value_avg"].append(value)
            log["val/clipfrac_avg"].append((near > far).double())
            log["val/ratio"].append(ratio)
        total = torch.cat(losses).mean() if losses else torch.zeros((), dtype=torch.float64)
        for name, (coefficient, examples) in self.auxiliary.items():
            own, nats = [([*text.prompt, *text.response], len(text.prompt)) for text in texts], []
            for ids, context in own if examples is None else examples(self.steps):
                every, _ = self.policy(ids, max(context, 1))
                nats.append(-every[range(len(every)), ids[-len(every) :]])
            log[f"loss/{name}_avg"] += nats
            total = total + coefficient * torch.cat(nats).mean()
        return total

    def step(self, loss: Tensor) -> float:
        """One step of AdamW along the clipped gradient; returns the norm before clipping."""
        s, weights = self.s, self.trained
        found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        norm = float(torch.cat([g.flatten() for g in found]).norm())
        scale = min(1.0, s.max_grad_norm / (norm + 1e-6))
        self.gradients.append({n: scale * g for n, g in zip(weights, found, strict=True)})
        self.steps, self.taken = self.steps + 1, self.taken + 1
        for name, g in self.gradients[-1].items():
            rate, (m, v) = s.learning_rates[name.split()[0]] * self.factor, self.moments[name]
            m, v = self.moments[name] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            root = (v / (1 - 0.999**self.taken)).sqrt() + 1e-8
            change = rate * m / (1 - 0.9**self.taken) / root
            weights[name].data.mul_(1 - rate * s.weight_decay).sub_(change)
        return norm

    def update(self, texts: Sequence[Any]) -> dict[str, float]:
        """Learn from one rollout; returns every metric."""
        s, number, norms, epochs, moved, empty = self.s, self.updates, [], 0, -math.inf, 0
        log, out = defaultdict[str, list[Tensor]](list), {"kl/coefficient": self.coefficient}
        for text in texts:
            self.see(text)
        self.mix(texts, out)
        valid = [text for text in texts if text.valid]  # nothing else is learned from
        self.credit(valid)
        gone = max(number - s.warmup_updates, 0) / max(s.updates - s.warmup_updates, 1)
        decay = {"constant": 1, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
        self.factor = min(1.0, (number + 1) / (s.warmup_updates + 1)) * decay[s.decay]
        self.gradients = list[dict[str, Tensor]]()
        while epochs < s.epochs and moved <= (s.stop_approx_kl or math.inf):
            seed, before = (s.seed * 1_000_003 + number) * 1_009 + epochs, len(log["val/ratio"])
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
            for rows in order.tensor_split(s.minibatches):
                chosen = [texts[row] for row in rows if texts[row].valid]
                if chosen or any(examples for _, examples in self.auxiliary.values()):
                    norms.append(self.step(self.loss(chosen, log)))
                else:
                    empty, self.steps = empty + 1, self.steps + 1
            moved = float(torch.cat(log["policy/approxkl_avg"][before:]).detach().mean())
            epochs += 1
        out |= {"train/grad_norm": fmean(norms), "train/epochs": epochs, "train/skipped_steps": 0}
        out |= {"lr": s.learning_rates["policy"] * self.factor, "train/empty_steps": empty}
        out["episode"] = (number + 1) * len(texts)
        out |= {name: fmean(torch.cat(tokens).tolist()) for name, tokens in log.items()}
        out["val/ratio_var"] = pvariance(torch.cat(log["val/ratio"]).tolist())
        totals, kl = [float(t.score.sum()) for t in valid], [float(t.kl.sum()) for t in texts]
        targets, values = (torch.cat([getattr(t, n) for t in valid]) for n in ("returns", "values"))
        paid = (
            self.coefficient * (s.placement == "reward") * fmean([float(t.kl.sum()) for t in valid])
        )
        plain, mix = [text.plain for text in valid], fmean(totals)
        out |= {"objective/scores": fmean(plain), "objective/scores_std": pstdev(plain)}
        out |= {"objective/mix": mix, "objective/rlhf_reward": mix - paid}
        out["objective/non_score_reward"] = -paid
        out |= {"objective/kl": fmean(kl), "kl/nats_per_response": fmean(kl)}
        out["objective/entropy"] = fmean([-float(t.logprobs.sum()) for t in texts])
        unexplained = pvariance((targets - values).tolist()) / pvariance(targets.tolist())
        out["critic/explained_variance"] = 1 - unexplained
        tokens = sum(len(text.response) for text in texts)
        out |= {"kl/nats_per_token": sum(kl) / tokens, "response/length_mean": tokens / len(texts)}
        out["response/truncated_share"] = fmean([t.ended == "length" for t in texts])
        out["val/num_eos_tokens"] = sum(t.ended == "eos" for t in texts)
        if s.top_k:
            self.sampler(texts, valid, out)
        measured = (self.coefficient, self.memory, out[f"kl/{s.unit}"], len(texts))
        self.coefficient, self.memory = self.control(*measured)
        self.updates += 1
        return out

    def sampler(self, texts: Sequence[Any], valid: Sequence[Any], out: dict[str, float]) -> None:
        """What the truncated distribution q is, beside the policy and the reference."""
        own = fmean([float(t.sampler.sum()) for t in texts])
        out |= {"sampler/logprob": own}
        out["sampler/kl_to_policy"] = own - fmean([float(t.logprobs.sum()) for t in texts])
        out["sampler/kl_to_reference"] = own - fmean([float(t.reference.sum()) for t in texts])
        ratios = torch.cat([(t.logprobs - t.sampler).exp() for t in texts])
        out["sampler/ratio"] = fmean(ratios.tolist())
        if self.s.correction != "none":
            weights = torch.cat([t.importance for t in valid])
            out["sampler/importance"] = fmean(weights.tolist())
            out["sampler/bounded_share"] = fmean((weights == 0).tolist())


def estimate(name: str, x: Tensor) -> Tensor:
    return {"k1": x, "k2": x * x / 2, "k3": torch.exp(-x) - 1 + x, "abs": x.abs()}[name]


def whiten(texts: Sequence[Any], name: str, *, keep_mean: bool) -> None:
    every = torch.cat([getattr(text, name) for text in texts])
    for text in texts:
        white = (getattr(text, name) - every.mean()) / (every.var(correction=0) + 1e-8).sqrt()
        setattr(text, name, white + keep_mean * every.mean())
