#!/usr/bin/env python3
"""Every causal language model of transformers, run by rlframe: the table of docs/architectures.md.

    python tests/benchmarks/architectures.py --write       # all of them: about five minutes of one core
    python tests/benchmarks/architectures.py llama mamba   # these alone, on the screen; with --write
                                                           # their rows of the page alone

A row is a small model with random weights, made from the architecture's default config by
`rlframe.models.reduced`, in float32 on the CPU. Exit status 1: an architecture is neither refused nor
right.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlframe.compose import probe
from rlframe.errors import RecipeError
from rlframe.models import loading
from rlframe.models.actor_critic import Critic
from rlframe.models.policy import Policy
from rlframe.models.profile import Profile
from rlframe.models.reduced import reduced_model
from rlframe.rollout.packing import pack
from tests.sampling import sampled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
UNMADE = "No small model could be made of the default config of:"
HEADER = (
    "architecture",
    "sampled with",
    "sampler - model",
    "log-probabilities - model",
    "greedy = `generate`",
    "critic, reward model",
)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": ("bamba", {"attn_layer_indices": [1]}),
    "bert (decoder)": ("bert", {"is_decoder": True}),
    "big_bird (decoder)": ("big_bird", {"is_decoder": True}),
    "electra (decoder)": ("electra", {"is_decoder": True}),
    "falcon (ALiBi)": ("falcon", {"alibi": True}),
    "gpt2 (untied)": ("gpt2", {"tie_word_embeddings": False}),
    "granitemoehybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention"] * 16}),
    "llama (dynamic rotation)": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            "max_position_embeddings": 8,
        },
    ),
    "llama (yarn)": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 2048,
            }
        },
    ),
    "mistral (sliding window)": ("mistral", {"sliding_window": 4}),
    "opt (post-norm, projected)": (
        "opt",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 512},
    ),
    "qwen2 (sliding window)": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "roberta (decoder)": ("roberta", {"is_decoder": True}),
    "xlm (causal)": ("xlm", {"causal": True}),
    "xlm-roberta (decoder)": ("xlm-roberta", {"is_decoder": True}),
}
"""Configs other than the default that matter, or without which the default makes no model."""


@dataclass
class Row:
    """What was found of an architecture."""

    name: str
    profile: Profile | None = None
    sampled: float = float("nan")
    learned: float = float("nan")
    greedy: str = ""
    critic: str = ""
    refused: str = ""
    unmade: str = ""

    @property
    def right(self) -> bool:
        """Whether nothing goes wrong silently."""
        if self.refused or self.unmade:
            return True
        return (
            max(self.sampled, self.learned) <= probe.TOLERANCE and "of" not in self.greedy.split()
        )

    def cells(self) -> tuple[str, ...]:
        if self.refused:
            return (self.name, f"refused: {self.refused}", "", "", "", "")
        assert self.profile is not None
        numbers = (f"{self.sampled:.0e}", f"{self.learned:.0e}")
        return (self.name, _way(self.profile), *numbers, self.greedy, self.critic)


def _way(profile: Profile) -> str:
    said = {
        "growing": "rlframe's cache",
        "own": "its own cache",
        "none": "no cache: the whole text is read again for each token",
    }[profile.cache]
    said += "" if profile.padded else ", prompts of equal length together"
    said += "" if profile.drops else ", finished rows carried along"
    return said + (", logits of all positions at once" if profile.whole else "")


def examine(name: str) -> Row:
    """Probe, sample and build what a run would build."""
    kind, options = VARIANTS.get(name, (name, {}))
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(kind, **options)
        model, reasons = reduced_model(config, length=None)
    except Exception as error:
        return Row(name, unmade=_short(f"{type(error).__name__}: {error}"))
    if model is None:
        return Row(name, unmade=_short(reasons[-1]))
    try:
        profile = probe.profile_by(model, name="", samples=True)
    except RecipeError as error:
        return Row(name, refused=_short(str(error).partition(") ")[2], 240))
    policy = Policy(model, temperature=1.0, chunk=64, profile=profile)
    with torch.no_grad():
        texts = probe.texts_for(policy)
        return Row(
            name,
            profile,
            probe.sampling_difference(policy, texts).nats,
            probe.learning_difference(policy, texts).nats,
            greedy(policy, [text.prompt for text in texts[:5]]),
            scalar(policy, texts),
        )


class NoText:
    """In the place of a tokenizer: the sampler's texts are not looked at."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def greedy(policy: Policy, prompts: list[list[int]], *, tokens: int = 8) -> str:
    """Whether the sampler, always taking the likeliest token, writes what `generate` writes."""
    ours = sampled(policy, NoText(), prompts, eos_ids={-1}, max_new_tokens=tokens, top_k=1)
    wanted = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    policy.model.generation_config = wanted  # otherwise the config's EOS would end some responses
    same, wrong = 0, 0
    for ids, mine in zip(prompts, ours.response_ids(), strict=True):
        read = torch.tensor([ids])
        try:
            theirs = policy.model.generate(
                read, attention_mask=torch.ones_like(read), generation_config=copy.copy(wanted)
            )
        except Exception as error:
            return f"`generate` fails ({type(error).__name__})"
        written = theirs[0, len(ids) :].tolist()
        same += written == mine
        wrong += written != mine and mine == _likeliest(policy, ids, tokens)
    if same + wrong == len(prompts):
        return "no, `generate` does not follow the model" if wrong else "yes"
    return f"{same} of {len(prompts)}"


def _likeliest(policy: Policy, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest tokens by plain forward passes, the whole text for each."""
    read = list(prompt)
    for _ in range(tokens):
        read.append(int(policy.model(input_ids=torch.tensor([read])).logits[0, -1].argmax()))
    return read[len(prompt) :]


def scalar(policy: Policy, texts: list[probe.Text]) -> str:
    """Whether a critic of its own can be built, as a reward model is, and gives what it gives alone."""
    try:
        critic = Critic(loading.scalar_model_from(policy.model, head="normal", seed=0))
        batch = pack(
            [t.prompt for t in texts], [t.response for t in texts], device=torch.device("cpu")
        )
        together = critic.values(batch, None)
        for row, text in enumerate(texts):
            alone = pack([text.prompt], [text.response], device=torch.device("cpu"))
            found = together[row, : len(text.response)]
            torch.testing.assert_close(found, critic.values(alone, None)[0], atol=1e-3, rtol=1e-3)
    except RecipeError:
        return "shared critic alone" if not policy.profile.whole else "no"
    except Exception as error:
        return f"no ({type(error).__name__})"
    return "yes"


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[: most - 1] + "…"


def table(lines: dict[str, str], unmade: dict[str, str]) -> str:
    """Markdown: the table, then what could not be made.

    Args:
      lines: a row of the table for each architecture.
      unmade: why there is none.
    """
    rows = [line for _, line in sorted(lines.items())]
    refused = sum("| refused: " in line for line in rows)
    found = [
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
        *rows,
        "",
        f"{len(rows) - refused} run, {refused} are refused (transformers {transformers.__version__}, "
        f"torch {torch.__version__.partition('+')[0]}).",
    ]
    if unmade:
        found += ["", UNMADE, "", *(f"- `{name}`: {why}" for name, why in sorted(unmade.items()))]
    return "\n".join(found)


def written() -> tuple[dict[str, str], dict[str, str]]:
    """What the page has now: (rows, why others were not made), by architecture."""
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [
        line for line in page if line.startswith("| ") and line.split(" | ")[0] != "| " + HEADER[0]
    ]
    lists = [line[3:].split("`: ", 1) for line in page if line.startswith("- `")]
    return {line[2:].split(" |")[0]: line for line in rows}, dict(lists)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all if left out")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for name in args.names or sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS}):
        begun = time.perf_counter()
        rows.append(examine(name))
        print(f"{rows[-1]} {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    lines, unmade = written() if args.write and args.names else ({}, {})
    for row in rows:
        lines.pop(row.name, None)
        unmade.pop(row.name, None)
        if row.unmade:
            unmade[row.name] = row.unmade
        else:
            lines[row.name] = "| " + " | ".join(row.cells()) + " |"
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{table(lines, unmade)}\n{END}{after}", encoding="utf-8")
    else:
        print(table(lines, unmade))
    return 0 if all(row.right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
