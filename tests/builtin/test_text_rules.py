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
    ("pattern", "instead"),
    [
        (r"(?=.*\d)x", "no lookaround"),
        (r"(?!no)", "no lookaround"),
        (r"(?<=a)b", "no lookaround"),
        (r"(?<!a)b", "no lookaround"),
        (r"(a)\1", "no backreferences"),
        (r"(?P<a>x)(?P=a)", "no backreferences"),
        (r"(?>a)", "no atomic groups"),
        (r"a++", "no atomic groups"),
        (r"end\Z", r"Write \z"),
        (r"\u00e9", "Write the character itself"),
        (r"a(?#why)", "no comments"),
        (r"a{2000}", "RE2"),
    ],
)
def test_a_pattern_that_only_re_understands_is_refused_with_what_to_write_instead(
    pattern, instead, capfd
):
    with pytest.raises(ValidationError) as caught:
        Regex.Config(pattern=pattern)
    assert instead in str(caught.value)
    assert "RE2's syntax" in str(caught.value)
    assert capfd.readouterr().err == ""  # of RE2's own log


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+b$", "(.*)*b", "(x+x+)+y|(a+)+$b"]
)
def test_no_pattern_explodes(build, batch, pattern):
    """`re` would take 2^100000 steps; a test of that cannot fail in another way than to hang."""
    texts = ["a" * 100_000, "x" * 100_000]
    assert build(Regex, pattern=pattern).score(batch(texts, ids=[1, 1])) == [0.0, 0.0]


def test_keywords_take_time_linear_in_the_text(build, batch):
    words = ["a" * 50, "a a a b", "c++"]
    text = "a " * 50_000 + "a" * 50_000
    assert build(Keyword, words=words).score(batch([text], ids=[1])) == [0.0]


def test_classes_know_ascii_alone_and_any_letter_is_p_l(build, batch):
    assert score(build, batch, Regex, "é", pattern=r"^\w") == 0.0
    assert score(build, batch, Regex, "é", pattern=r"^\p{L}") == 1.0
    assert score(build, batch, Regex, "end\n", pattern="end$") == 0.0


@pytest.mark.parametrize("keys", [{"match": 0.0}, {"match": 2, "no_match": 2}], ids=str)
def test_a_rule_that_scores_everything_alike_is_refused(keys):
    with pytest.raises(ValidationError, match="nothing would be learned"):
        Regex.Config(pattern="a", **keys)
    with pytest.raises(ValidationError, match="nothing would be learned"):
        Keyword.Config(words=["a"], per_word=0)


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
