from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from rlframe.runs.display import LiveDisplay, PlainDisplay, make_display

FIGURES = {"objective/scores": 1.25, "kl/coefficient": 0.05, "other": 3.0}


def test_a_terminal_gets_the_live_display_and_a_file_plain_lines() -> None:
    live = make_display(Console(file=io.StringIO(), force_terminal=True))
    live.close()
    assert isinstance(live, LiveDisplay)
    assert isinstance(make_display(Console(file=io.StringIO())), PlainDisplay)


def test_plain_lines_hold_the_headline_figures_and_no_control_characters() -> None:
    file = io.StringIO()
    display = PlainDisplay(Console(file=file))
    display.stage("ppo", "2 updates [of] text")
    display.step(1, 2, FIGURES)
    display.step(2, 2, {})
    display.close()
    text = file.getvalue()
    assert "== ppo: 2 updates [of] text" in text  # model text is not markup
    assert "ppo 1/2  score 1.25  β 0.05" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2  # a step without figures says nothing


def test_the_live_table_shows_the_last_updates_and_leaves_the_final_one_standing() -> None:
    file = io.StringIO()
    display = LiveDisplay(Console(file=file, force_terminal=True, width=120))
    display.stage("sft", "10 examples")
    display.step(1, 2, {"loss": 2.5})
    display.stage("ppo", "20 updates")
    for number in range(1, 21):
        display.step(number, 20, {**FIGURES, "objective/scores": number / 7})
    display.show(Table("prompt"))
    display.say("done [bold]")
    display.close()
    text = file.getvalue()
    assert "2.86" in text  # 20 / 7
    assert "score" in text
    assert "done [bold]" in text
    assert "prompt" in text


def test_no_number_of_the_live_table_is_cut_in_a_terminal_of_80_columns() -> None:
    from rlframe.runs.display import HEADLINES

    values = [-0.2269, 3.1377, 0.07651, 123.44, 0.1251, 6.107e-05, 0.08694, -0.1281, 23.64]
    file = io.StringIO()
    display = LiveDisplay(Console(file=file, force_terminal=True, width=80))
    display.step(1000, 1000, dict(zip((key for key, _ in HEADLINES), values, strict=True)))
    display.close()
    text = file.getvalue()
    assert "…" not in text
    for shown in (
        "1000",
        "-0.227",
        "3.14",
        "0.0765",
        "123",
        "6.11e-05",
        "0.0869",
        "-0.128",
        "23.6",
    ):
        assert shown in text
