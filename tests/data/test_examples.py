"""What the supervised stages are given: what is cut, what is counted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared, demonstrations, preferences
from rlframe.data.fitting import Pair
from rlframe.data.format import as_chat
from rlframe.errors import RecipeError
from rlframe.types import Row
from tests import foreign

SHARED = next(
    (
        folder / "shared" / "data"
        for folder in Path(__file__).resolve().parents
        if (folder / "shared" / "data").is_dir()
    ),
    None,
)


def real(name: str) -> list[Any]:
    """Rows of a real data set, which lies beside the repository where it is there at all."""
    if SHARED is None or not (SHARED / name).exists():
        pytest.skip(f"shared/data/{name} is not beside the repository")
    text = (SHARED / name).read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line]
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in lines]


def pairs(
    rows: list[Row], family: str = "llama3", *, max_tokens: int = 40, max_equal: float = 0.05
) -> Prepared[Pair]:
    words = foreign.tokenizer(family)
    encoded = [RowEncoder(words).pair(row) for row in rows]
    return preferences(
        (encoded[1:], encoded[:1]),
        words,
        max_tokens=max_tokens,
        max_equal=max_equal,
        stage="reward_model",
    )


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# Pairs


def test_a_prompt_that_fills_all_there_is_leaves_the_answers_whole() -> None:
    found = pairs([pair("x" * 200, " yes", " no")] * 4)
    words = foreign.tokenizer("llama3")
    for chosen, rejected in (*found.train, *found.heldout):
        assert len(chosen.ids) == 40
        assert words.decode(list(chosen.ids)).endswith("x yes<|end_of_text|>")
        assert words.decode(list(rejected.ids)).endswith("x no<|end_of_text|>")
        assert chosen.ids[0] == words.bos_token_id
    assert found.notes == (
        "4 of 4 pairs lose the beginning of their prompt, so that both answers fit into "
        "max_tokens (40)",
    )


def test_pairs_that_differ_beyond_all_there_is_are_refused_with_what_would_help() -> None:
    rows = [pair("x", " yes", " no")] * 18 + [pair("x", "y" * 99 + "a", "y" * 99 + "b")]
    with pytest.raises(RecipeError) as caught:
        pairs([*rows, pair("x", " yes", " yes")])
    assert str(caught.value) == (
        "2 of 20 pairs have the same tokens as chosen and as rejected, so that nothing is learned from "
        "them: 1 are so in the data, 1 since max_tokens (40) cuts off where they differ. "
        "max_equal_pairs allows a share of 0.05. Raise `reward_model.max_tokens` (the longest text has "
        "103), or set `reward_model.max_equal_pairs: 0.1`"
    )
    assert pairs([*rows, pair("x", " yes", " yes")], max_equal=0.1).notes == (
        "2 of 20 pairs are the same on both sides: ties, from which nothing is learned",
        "1 of 20 pairs lose the beginning of their prompt, so that both answers fit into "
        "max_tokens (40)",
        "1 of 20 pairs lose the end of an answer longer than max_tokens (40)",
    )
    assert len(pairs(rows, max_tokens=200).train) == 18  # nothing is cut, so nothing is equal


def test_empty_answers_and_prompts_that_differ_are_counted() -> None:
    dialogue = "\n\nHuman: {}\n\nAssistant:{}"
    rows: list[Row] = [pair("x", " yes", " no")] * 2
    rows += [pair("x", "", " no"), pair("x", " yes", "  ")]
    rows += [{"chosen": dialogue.format("Hi", " yes"), "rejected": dialogue.format("Ho", " no")}]
    assert pairs(rows).notes == (
        "2 of 5 pairs have an empty answer",
        "1 of 5 pairs have prompts that differ",
    )


@pytest.mark.parametrize("max_equal", [0, 1])
def test_the_share_of_equal_pairs_is_a_bound(max_equal: int) -> None:
    rows = [pair("x", " yes", " yes")] * 3
    if max_equal:
        assert len(pairs(rows, max_equal=1).train) == 2
    else:
        with pytest.raises(RecipeError, match="3 of 3 pairs"):
            pairs(rows, max_equal=0)


# Real preferences


@pytest.mark.parametrize("family", ["llama3", "base"])
def test_dialogues_of_hh_go_through_with_their_faults_counted(family: str) -> None:
    rows = real("hh_harmless_test.jsonl")[:400]
    words = foreign.tokenizer(family)
    found = pairs(rows, family, max_tokens=512)
    assert len(found.train) + len(found.heldout) == len(rows)
    assert not any("same on both sides" in note for note in found.notes)
    for row, (chosen, _) in zip(rows, (*found.heldout, *found.train), strict=True):
        answer = row["chosen"].rpartition("\n\nAssistant:")[2]
        text = words.decode(list(chosen.ids))
        assert text.endswith(answer + words.eos_token) or len(chosen.ids) == 512


def test_four_empty_answers_and_three_unequal_prompts_of_hh_are_named() -> None:
    found = pairs(real("hh_harmless_test.jsonl"), max_tokens=4096)
    assert found.notes == (
        "4 of 1623 pairs have an empty answer",
        "3 of 1623 pairs have prompts that differ",
    )


def test_no_pair_of_llama_factory_s_demo_loses_its_signal_at_the_default_length() -> None:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def message(said: dict[str, str]) -> dict[str, str]:
        return {"role": roles[said["from"]], "content": said["value"]}

    rows = [
        {
            "messages": list(map(message, row["conversations"])),
            "chosen": message(row["chosen"]),
            "rejected": message(row["rejected"]),
        }
        for row in real("llamafactory_dpo_en_demo.json")
    ]
    found = pairs(rows, "chatml", max_tokens=512)
    assert len(found.train) == 299
    equal = [note for note in found.notes if "same on both sides" in note]
    assert len(equal) == 0 or int(equal[0].split()[0]) <= 3
    for chosen, rejected in found.train:
        assert max(len(chosen.ids), len(rejected.ids)) <= 512


def test_answers_of_pandalm_that_are_no_text_are_read_as_text() -> None:
    rows = [
        as_chat(pair(row["instruction"], row["response1"], row["response2"]))
        for row in real("pandalm_testset_v1.jsonl")
    ]
    words = foreign.tokenizer("llama3")
    encoder = RowEncoder(words)
    pairs_ = [encoder.pair(row) for row in rows]
    found = preferences((pairs_, pairs_[:1]), words, max_tokens=1024, max_equal=0.05, stage="judge")
    assert len(found.train) == 605
    assert encoder.remarks["not text"] == 6


# Demonstrations


def examples(rows: list[Row], *, max_tokens: int = 40, learn: Any = "all") -> Prepared[Any]:
    words = foreign.tokenizer("llama3")
    encoded = [RowEncoder(words, learn).example(row) for row in rows]
    return demonstrations((encoded, encoded[:1]), words, max_tokens=max_tokens)


def test_a_demonstration_loses_the_beginning_of_its_prompt_rather_than_its_answer() -> None:
    found = examples([{"prompt": "x" * 200, "response": " yes"}, {"text": "y" * 50}])
    words = foreign.tokenizer("llama3")
    assert words.decode(list(found.train[0].ids)).endswith("x yes<|end_of_text|>")
    assert [len(e.ids) for e in found.train] == [40, 40]
    assert found.notes == (
        "3 of 3 examples are longer than max_tokens (40; the longest has 205): 2 lose the beginning of "
        "their prompt, 1 the end of what is learned",
    )


def test_the_last_answer_alone_is_learned_where_that_is_wanted() -> None:
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]
    (every,), (last,) = (
        examples([{"messages": messages}], max_tokens=99, learn=learn).train
        for learn in ("all", "last")
    )
    assert every.ids == last.ids
    assert [end - start for start, end in every.spans] == [2, 2]  # a letter and an end
    assert last.spans == every.spans[-1:]


def test_an_example_that_leaves_nothing_to_learn_is_shown() -> None:
    with pytest.raises(RecipeError, match="max_tokens of 1 leaves nothing to learn"):
        examples([{"prompt": "x", "response": " yes"}], max_tokens=1)
