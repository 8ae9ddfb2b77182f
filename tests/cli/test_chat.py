"""`rlframe chat`: a conversation by lines, on a terminal and through a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.text import visible
from tests.finished import SYSTEM, chat_run, plain_run

ASKED = "Write review 3 of a camera."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def talk(rlframe: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Say lines to `rlframe chat`; how it ended."""

    def go(path: Path, lines: str, *options: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return rlframe("chat", path, *options)

    return go


@pytest.fixture
def answered(rlframe: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The greedy answer of `rlframe generate` to messages."""

    def ask(path: Path, messages: list[dict[str, str]]) -> dict[str, Any]:
        file = tmp_path / "asked.jsonl"
        file.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
        ended = rlframe("generate", path, "--prompts", file, "--greedy", "--initial")
        assert ended.code == 0, ended.err
        row: dict[str, Any] = json.loads(ended.out)
        return row

    return ask


def as_shown(text: str) -> str:
    return f"{visible(text)}\n"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_it_keeps_the_conversation_of_each_model_until_it_is_reset(
    run: Path, talk: Any, answered: Any
) -> None:
    first = answered(run, [user(ASKED)])
    second = [user(ASKED), assistant(first["response"]), user("And now?")]
    after = answered(run, second)
    assert SYSTEM in after["prompt"]
    first_initial = first["initial"]["response"]
    second[1] = assistant(first_initial)
    before = answered(run, second)
    both = [
        as_shown(f"policy> {first['response']}"),
        as_shown(f"initial> {first_initial}"),
        as_shown(f"policy> {after['response']}"),
        as_shown(f"initial> {before['initial']['response']}"),
    ]
    lines = f"{ASKED}\nAnd now?\n\n/reset\n{ASKED}\n/exit\n{ASKED}\n"
    ended = talk(run, lines, "--greedy", "--initial")
    assert ended.code == 0, ended.err
    assert ended.out == "".join([*both, *both[:2]])
    alone = talk(run, f"{ASKED}\nAnd now?", "--greedy")  # the last line may lack its end
    assert alone.out == as_shown(first["response"]) + as_shown(after["response"])
    assert "Each line is a turn of one conversation" in alone.err


def test_without_a_chat_each_line_is_completed_by_itself(
    plain: Path, talk: Any, rlframe: Any
) -> None:
    ended = talk(plain, "The camera\nIt is\nThe camera\n", "--greedy")
    assert ended.code == 0
    assert "Each line is a prompt of its own" in ended.err
    given = rlframe("generate", plain, "--prompt", "The camera", "--prompt", "It is", "--greedy")
    one, two = (as_shown(json.loads(line)["response"]) for line in given.out.split("\n") if line)
    assert ended.out == one + two + one


def test_what_is_sampled_depends_on_the_seed_and_the_turn(plain: Path, talk: Any) -> None:
    lines = "The camera\nThe camera\n"
    ended = talk(plain, lines)
    assert talk(plain, lines).out == ended.out
    assert talk(plain, lines, "--seed", 5).out != ended.out
    first = talk(plain, "The camera\n").out
    assert ended.out.startswith(first)
    assert ended.out != first + first


def test_a_conversation_that_grows_too_long_loses_its_oldest_messages(run: Path, talk: Any) -> None:
    long = " ".join(["word"] * 20)
    ended = talk(run, f"{long}\n" * 4, "--greedy")
    assert ended.code == 0, ended.err
    assert "(policy: oldest messages left out: " in ended.err
    assert "error" not in ended.err


def test_a_line_that_is_too_long_is_refused_and_the_conversation_goes_on(
    run: Path, plain: Path, talk: Any
) -> None:
    for path, count in ((run, 400), (plain, 200)):
        usual = talk(path, f"{ASKED}\nAnd now?\n", "--greedy")
        ended = talk(path, f"{ASKED}\n{'word ' * count}\nAnd now?\n", "--greedy")
        assert (ended.code, ended.out) == (0, usual.out)
        assert "leave room for a response" in ended.err


def test_an_answer_that_was_cut_off_says_so(plain: Path, talk: Any) -> None:
    ended = talk(plain, "The camera\n", "--max-new-tokens", 3, "--greedy")
    assert "(the answer was cut off, since --max-new-tokens is 3)" in ended.err


def test_commands_are_shown_and_a_misspelt_one_is_not_said_to_the_model(
    plain: Path, talk: Any
) -> None:
    ended = talk(plain, "/help\n/rest\n")
    assert (ended.code, ended.out) == (0, "")
    assert "/reset  begin a new conversation" in ended.err
    assert "/rest is no command. Did you mean '/reset'?" in ended.err
    assert talk(plain, " /rest\n").out != ""


def test_what_is_said_and_answered_is_text_and_nothing_else(
    run: Path, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[bold]a[/bold] \x1b[31m :smile: {x} <|eot_id|>"
    ended = talk(run, f"{text}\n/\x1b[31m\n", "--greedy")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out + ended.err

    from rlframe.compose.responses import Responder, Response

    answer = [Response("[bold]b[/bold] \x1b[2J\u202e", "eos", 4)]
    monkeypatch.setattr(Responder, "respond", lambda *_, **__: answer)
    assert talk(run, "a\n").out == "[bold]b[/bold] \\u001b[2J\\u202e\n"


def test_bytes_that_are_no_text_do_not_end_it(plain: Path, rlframe: Any, monkeypatch: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    ended = rlframe("chat", plain)
    assert ended.code == 0, ended.err
    assert ended.out


def test_ctrl_c_leaves_without_a_failure(
    plain: Path, rlframe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *_: Any) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    ended = rlframe("chat", plain)
    assert (ended.code, ended.out) == (0, "")


def test_a_wrong_stage_is_refused_before_anything_is_said(plain: Path, talk: Any) -> None:
    ended = talk(plain, "hello\n", "--stage", "reward_model")
    assert ended.code == 2
    assert ended.out == ""


@pytest.mark.parametrize(
    "leaving", [b"\x03", b"\x04", b"/exit\n"], ids=["ctrl-c", "ctrl-d", "exit"]
)
def test_on_a_terminal_it_answers_and_is_left_with_success(
    plain: Path, leaving: bytes, talk: Any
) -> None:
    answer = talk(plain, "The camera\n", "--greedy").out
    assert answer
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
        os.execv(sys.executable, [sys.executable, "-m", "rlframe", "chat", str(plain), "--greedy"])
    try:
        assert b"/help shows" in shown_until(terminal, b"> ")
        os.write(terminal, b"The camera\n")
        shown = shown_until(terminal, b"\n> ").replace(b"\r\n", b"\n")
        assert answer.encode() in shown
        leave(terminal, leaving)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(terminal)


def shown_until(terminal: int, end: bytes) -> bytes:
    """What a terminal shows up to some text."""
    shown, last = b"", time.monotonic() + 300
    while end not in shown:
        assert time.monotonic() < last, shown
        if select.select([terminal], [], [], 1)[0]:
            found = read(terminal)
            assert found, shown
            shown += found
    return shown


def leave(terminal: int, keys: bytes) -> None:
    """Press keys until the process has ended.

    A signal that comes between CPython's last look and the system call that waits is seen when
    that call returns, so that a person presses Ctrl-C once more.
    """
    last = time.monotonic() + 300
    os.write(terminal, keys)
    while True:
        assert time.monotonic() < last
        if not select.select([terminal], [], [], 10)[0]:
            os.write(terminal, keys)
        elif not read(terminal):
            return


def read(terminal: int) -> bytes:
    """What it shows next; nothing if nobody has the other side any more."""
    try:
        return os.read(terminal, 1000)
    except OSError:
        return b""
