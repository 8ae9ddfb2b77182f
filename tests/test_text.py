"""Other people's text in a terminal and in lines: every separator and control character."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest

from rlframe.text import cell, console, lines, say, table, visible

CONTROLS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]
DIRECTIONS = [
    chr(code)
    for code in range(0x110000)
    if unicodedata.bidirectional(chr(code))
    in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
] + ["\u061c", "\u200e", "\u200f"]
SEPARATORS = [chr(code) for code in range(0x110000) if len(f"a{chr(code)}b".splitlines()) > 1]
SURROGATES = ["\ud800", "\udc80", "\udfff"]
UNSEEN = sorted({*CONTROLS, *DIRECTIONS, *SEPARATORS, *SURROGATES} - {"\n", "\t"})
MARKUP = ["[/INST]", "[bold red]", "[link=http://a]x[/link]", ":smiley:", r"\[x]", "[", "[[]]"]


def test_the_characters_are_those_that_unicode_has() -> None:
    assert len(CONTROLS) == 65
    assert {"\x85", "\u2028", "\u2029", "\x1c", "\x0b"} <= set(SEPARATORS)


@pytest.mark.parametrize("character", UNSEEN, ids=lambda c: f"U+{ord(c):04X}")
def test_what_a_terminal_obeys_becomes_an_escape_that_json_reads(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown == f"a\\u{ord(character):04x}b"
    assert json.loads(f'"{shown}"') == f"a{character}b"


def test_other_text_stays_as_it_is() -> None:
    plain = "Ünïcödé 日本語 עברית \U0001f468\u200d\U0001f469 tab\tline\n"
    assert visible(plain) == plain
    assert visible(ValueError("what")) == "what"


@pytest.mark.parametrize("character", [*UNSEEN, "\t"], ids=lambda c: f"U+{ord(c):04X}")
def test_a_line_ends_at_a_newline_and_nowhere_else(character: str) -> None:
    text = f"a{character}b\nc"
    assert lines(text) == [f"a{character}b", "c"]
    assert "".join(lines(text, keep_ends=True)) == text


def test_the_last_line_may_lack_its_end() -> None:
    assert lines("") == []
    assert lines("a") == lines("a\n") == ["a"]
    assert lines("\n\na\n\n") == ["", "", "a", ""]
    assert lines("a\nb", keep_ends=True) == ["a\n", "b"]


def test_what_is_said_holds_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("".join(UNSEEN))
    say("".join(MARKUP), err=True)
    out, err = capsys.readouterr()
    assert not set(UNSEEN) & set(out)
    assert err == "".join(MARKUP) + "\n"


def test_nothing_is_said_where_there_is_no_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setattr(sys, "stdout", None)
        say("nobody hears")
        say("somebody does", err=True)
    assert capsys.readouterr() == ("", "somebody does\n")


@pytest.mark.parametrize("text", [*MARKUP, "".join(UNSEEN)])
def test_a_table_shows_text_and_obeys_none_of_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    shown = table(text, title=text)
    shown.add_row(cell(text))
    console(width=1000).print(shown, text)
    assert out.getvalue().count(visible(text)) == (4 if text in MARKUP else 3)
    console(width=1000).print(cell(text))
    assert not set(UNSEEN) & set(visible(out.getvalue().replace(text, "")))
