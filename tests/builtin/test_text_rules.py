"""Rewards by rule: tables of what is found and what it is worth."""

import pytest
from pydantic import ValidationError

from rlframe.builtin.text_rules import Keyword, Regex


def score(build, batch, component, text, **keys):
    (found,) = build(component, **keys).score(batch([text]))
    return found


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({"pattern": "love"}, "I love it", 1.0),
        ({"pattern": "love"}, "gloves", 1.0),  # anywhere, inside a word too
        ({"pattern": "love"}, "I Love it", 0.0),
        ({"pattern": "love", "ignore_case": True}, "I LOVE it", 1.0),
        ({"pattern": "^love"}, "I love it", 0.0),
        ({"pattern": r"it\.$"}, "I love it.", 1.0),
        ({"pattern": r"it\.$"}, "I love it. So", 0.0),
        ({"pattern": r"\d{3}"}, "12 or 123", 1.0),
        ({"pattern": "love", "match": -2, "no_match": 0.5}, "I love it", -2.0),
        ({"pattern": "love", "match": -2, "no_match": 0.5}, "I like it", 0.5),
        ({"pattern": "love"}, "", 0.0),
        ({"pattern": "ü"}, "GRÜN", 0.0),
        ({"pattern": "ü", "ignore_case": True}, "GRÜN", 1.0),
    ],
)
def test_regex(build, batch, keys, text, expected):
    assert score(build, batch, Regex, text, **keys) == expected


@pytest.mark.parametrize("pattern", ["(", "*", "[a"])
def test_a_pattern_that_does_not_compile_is_refused_with_the_reason(pattern):
    with pytest.raises(ValidationError, match="not a regular expression: "):
        Regex.Config(pattern=pattern)


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({"words": ["love"]}, "I love it", 1.0),
        ({"words": ["love"]}, "love love love", 1.0),  # a word counts once
        ({"words": ["love"]}, "I LOVE it!", 1.0),  # whatever its case
        ({"words": ["LOVE"]}, "I love it!", 1.0),
        ({"words": ["love"]}, "lovely gloves", 0.0),  # whole words only
        ({"words": ["love"]}, "(love)", 1.0),
        ({"words": ["love"]}, "love_it", 0.0),
        ({"words": ["love", "like"]}, "I like and love it", 2.0),
        ({"words": ["love", "Love"]}, "I love it", 1.0),  # twice in the list is once
        ({"words": ["very pleased"]}, "I'm very pleased.", 1.0),
        ({"words": ["very pleased"]}, "very much pleased", 0.0),
        ({"words": ["i'm"]}, "so I'm told", 1.0),
        ({"words": ["c++"]}, "written in C++, mostly", 1.0),  # signs are no pattern
        ({"words": ["a.b"]}, "axb", 0.0),
        ({"words": ["grün"]}, "ein GRÜNES, kein Grün", 1.0),
        ({"words": ["a", "b", "c"], "at_most": 2}, "a b c", 2.0),
        ({"words": ["a", "b", "c"], "at_most": 2}, "c", 1.0),
        ({"words": ["a", "b"], "at_most": 5}, "a b", 2.0),
        ({"words": ["a", "b"], "per_word": 0.5}, "b a", 1.0),
        ({"words": ["bad", "awful"], "per_word": -1}, "bad, awful", -2.0),
        ({"words": ["bad", "awful"], "per_word": -1, "at_most": 1}, "bad, awful", -1.0),
        ({"words": ["bad"], "per_word": -1}, "good", 0.0),
        ({"words": ["bad"]}, "", 0.0),
    ],
)
def test_keyword(build, batch, keys, text, expected):
    assert score(build, batch, Keyword, text, **keys) == expected


@pytest.mark.parametrize("component", [Regex, Keyword])
def test_each_response_is_judged_by_its_text_alone(build, batch, component):
    keys = {"pattern": "love"} if component is Regex else {"words": ["love"]}
    texts = ["love", "hate", "", "I love it", "hate"]
    reward = build(component, **keys)
    assert reward.score(batch(texts)) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert reward.score(batch(texts[::-1])) == [0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "keys", [{"words": []}, {"words": [""]}, {"words": ["a"], "at_most": 0}, {}]
)
def test_a_list_without_words_or_a_limit_of_none_is_refused(keys):
    with pytest.raises(ValidationError):
        Keyword.Config(**keys)
