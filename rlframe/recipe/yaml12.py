"""YAML 1.2 text as plain data, with the line and column of every key. A recipe is data: no tags.

What the parser accepts and a recipe does not (a key twice, tags, keys that are no words) is collected,
so that it is reported together with everything else; text that is no YAML ends the reading at once.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

from rlframe.errors import RecipeError
from rlframe.recipe.document import Document, Path_, Problem

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("int", "float", "bool", "null")}
_TEXTS = {_TAG + name for name in ("str", "timestamp", "value", "merge")}  # YAML 1.2 has no dates

# What a person writes is far below these, and what is below them is read within a second or two: the
# parser is pure Python, and some of its steps are quadratic.
_MOST_BYTES = 256 * 1024
_MOST_VALUES = 3_000
_MOST_TOKENS = 4 * _MOST_VALUES  # a key, a colon, a value, a comma
_DEEPEST = 40  # levels

_IN_OTHER_WORDS = (
    ("character '\\t'", "a tab cannot stand here; indent with spaces"),
    ("cannot start any token", "text that begins with {character} needs quotes"),
    ("mapping values are not allowed", "a second `key:` on this line, or wrong indentation; text "
     "with a colon in it needs quotes"),
    ("sequence entries are not allowed", "a list of `- ` lines begins on a line of its own"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("could not find expected ':'", "the lines above are no `key: value`"),
    ("expected ',' or '}'", "the `{{` of line {opened} is not closed, or a comma is missing; between "
     "braces `${{...}}` needs quotes"),
    ("expected ',' or ']'", "the `[` of line {opened} is not closed, or a comma is missing"),
    ("expected the node content", "a value is missing, or a bracket is not closed"),
    ("expected '<document start>'", "there is something left over after the end of the recipe"),
    ("found unexpected end of stream", "the quote of line {opened} is not closed"),
    ("found unknown escape", "in double quotes a backslash begins an escape; use single quotes"),
    ("found undefined alias", "`*name` stands for an anchor `&name`, but there is none before it"),
    ("another document", "a recipe is one document; a second one begins here with `---`"),
)  # fmt: skip


def parse_value(text: str) -> Any:
    """The value of an override: YAML 1.2, so 1e-5 is a number and `on` a word.

    Raises:
      RecipeError: it cannot be parsed.
    """
    try:
        document = Document()
        value = _Reader(document, "", 0).read(text)
    except _NotYAMLError as error:
        raise RecipeError(f"the value is not YAML: {error.problem}") from error
    if document.problems:
        raise RecipeError(f"the value is not plain YAML: {document.problems[0].message}")
    return value


def plain_scalar(text: str) -> Any:
    """What the text means as it stands, unquoted: a number, true, false, null, or the text itself."""
    yaml = _parser()
    tag = str(yaml.resolver.resolve(ScalarNode, text, (True, False)))
    return _scalar(ScalarNode(tag, text), yaml)


def read_file(path: Path, rank: int = 0) -> Document:
    """Parse a recipe file; what is wrong with single keys is in the document's problems.

    Args:
      path: the file.
      rank: its turn among the files of a recipe, by which messages are sorted.

    Raises:
      RecipeError: the file is missing, is not YAML, or is not a mapping.
    """
    text = read_text(path)
    document = Document()
    document.places[()] = f"{path}:1:1"
    document.order[f"{path}:1:1"] = (rank, 0, 0)
    try:
        data = _Reader(document, str(path), rank).read(text)
    except _NotYAMLError as error:
        where = f":{error.line + 1}:{error.column + 1}" if error.line is not None else ""
        raise RecipeError(f"{path}{where}: not valid YAML: {error.problem}") from error
    if not isinstance(data, dict):
        found = (
            "nothing" if data is None else "a list" if isinstance(data, list) else repr(data)[:60]
        )
        problem = f"a recipe is a mapping of keys, here is {found}; start with `version: 1`"
        colon = "; a colon needs a space behind it" if isinstance(data, str) and ":" in data else ""
        raise RecipeError(f"{path}:1:1: {problem}{colon}")
    document.data = data
    return document


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
      RecipeError: it is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise RecipeError(
                f"{path}: a recipe has at most {_MOST_BYTES // 1024} KiB, and this file has more. Data "
                "belongs in files of its own, which `data.NAME.path` names"
            )
        return text.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe file") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: cannot be read: this line is not UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{path}: cannot be read: {reason}") from error


class _NotYAMLError(Exception):
    def __init__(self, problem: str, line: int | None = None, column: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column = problem, line, column


class _Scanner(Scanner):
    """Refuses what takes long: endless text, and brackets inside brackets, all of which it looks at for
    each token.
    """

    def fetch_flow_collection_start(self, *token: Any, **names: Any) -> None:
        if len(self.flow_context) >= _DEEPEST:
            mark = self.reader.get_mark()
            raise _NotYAMLError(_TOO_DEEP, mark.line, mark.column)
        super().fetch_flow_collection_start(*token, **names)

    def fetch_more_tokens(self) -> Any:
        if self.tokens_taken > _MOST_TOKENS:
            mark = self.reader.get_mark()
            raise _NotYAMLError(
                f"more than {_MOST_VALUES:,} keys and values", mark.line, mark.column
            )
        return super().fetch_more_tokens()


_TOO_DEEP = f"lists or mappings are nested more than {_DEEPEST} deep"


def _parser() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = "1.2"
    yaml.Scanner = _Scanner
    return yaml


class _Reader:
    """Walks the nodes of one text."""

    def __init__(self, document: Document, file: str, rank: int) -> None:
        self.document, self.file, self.rank = document, file, rank
        self.yaml = _parser()
        self.values = 0
        self.inside: list[int] = []

    def read(self, text: str) -> Any:
        other = re.search(r"(?m)\A(?:#.*\n|\s*\n)*%YAML\s+(?!1\.2\b)(\S+)", text)
        if other:
            line = text[: other.start(1)].count("\n")
            raise _NotYAMLError(f"a recipe is YAML 1.2, not {other[1]}; remove this line", line)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it
                root = self.yaml.compose(text)
            return None if root is None else self.value(root, ())
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _NotYAMLError(
                _reworded(error), *((mark.line, mark.column) if mark else ())
            ) from error
        except ReaderError as error:
            line = text[: error.position].count("\n")
            character = error.character
            code = character if isinstance(character, int) else ord(character)
            column = error.position - text.rfind("\n", 0, error.position) - 1
            problem = f"the character U+{code:04X} cannot stand in a text file"
            raise _NotYAMLError(problem, line, column) from error
        except YAMLError as error:
            raise _NotYAMLError(str(error).partition("\n")[0]) from error
        except RecursionError as error:
            raise _NotYAMLError(_TOO_DEEP) from error

    def value(self, node: Node, path: Path_) -> Any:
        self.values += 1
        if self.values > _MOST_VALUES:
            raise _NotYAMLError(f"more than {_MOST_VALUES:,} values; do aliases repeat each other?")
        if id(node) in self.inside:
            self.problem(node, path, "an alias cannot stand inside what it stands for")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            self.problem(node, path, f"a recipe takes no YAML tags, here is {_shown(node.tag)}")
            return None
        if len(self.inside) >= _DEEPEST:
            raise _NotYAMLError(_TOO_DEEP, node.start_mark.line, node.start_mark.column)
        self.inside.append(id(node))
        try:
            return (
                self.mapping(node, path) if isinstance(node, MappingNode) else self.list(node, path)
            )
        finally:
            self.inside.pop()

    def scalar(self, node: ScalarNode, path: Path_) -> Any:
        if node.tag not in _SCALARS | _TEXTS:
            self.problem(node, path, f"a recipe takes no YAML tags, here is {_shown(node.tag)}")
            return None
        try:
            return _scalar(node, self.yaml)
        except ValueError:  # of more digits than Python reads, or `!!int word`
            self.problem(node, path, f"{_short(node.value)} cannot be read as a number")
            return None

    def list(self, node: Node, path: Path_) -> list[Any]:
        for index, item in enumerate(node.value):
            self.note(item, (*path, index))
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                continue
            if not isinstance(key, ScalarNode) or key.tag not in _TEXTS:
                shown = str(key.value)[:40] if isinstance(key, ScalarNode) else "a list or mapping"
                advice = "; for a name put it in quotes" if isinstance(key, ScalarNode) else ""
                self.problem(key, path, f"keys should be strings, but here is {shown}{advice}")
                continue
            inner = (*path, key.value)
            if key.value in found:
                first = self.document.place(inner).removeprefix(f"{self.file}:").split(":")[0]
                self.problem(key, inner, f"this key is given twice, first at line {first}")
                continue
            self.note(key, inner)
            found[key.value] = self.value(value, inner)
        merged = [value for key, value in node.value if key.tag == _TAG + "merge"]
        for source in merged:
            self.merge(source, path, found)
        return found

    def merge(self, source: Node, path: Path_, found: dict[str, Any]) -> None:
        """`<<`: keys of other mappings, where there are none of that name yet."""
        for node in source.value if isinstance(source, SequenceNode) else [source]:
            if not isinstance(node, MappingNode):
                self.problem(
                    node, (*path, "<<"), "`<<` takes an alias of a mapping, as in `<<: *base`"
                )
                continue
            if id(node) in self.inside:
                self.problem(node, path, "an alias cannot stand inside what it stands for")
                continue
            kept = [(k, v) for k, v in node.value if getattr(k, "value", None) not in found]
            inner = MappingNode(node.tag, kept, node.start_mark, node.end_mark)
            self.inside.append(id(node))
            found |= self.mapping(inner, path)
            self.inside.pop()

    def note(self, node: Node, path: Path_) -> None:
        self.document.places[path] = self.place(node)

    def place(self, node: Node) -> str:
        line, column = node.start_mark.line, node.start_mark.column
        place = f"{self.file}:{line + 1}:{column + 1}"
        self.document.order[place] = (self.rank, line, column)
        return place

    def problem(self, node: Node, path: Path_, message: str) -> None:
        self.document.problems.append(Problem(self.place(node), path, message))
        self.document.unknown.add(path)


def _scalar(node: ScalarNode, yaml: YAML) -> Any:
    return yaml.constructor.construct_object(node) if node.tag in _SCALARS else str(node.value)


def _reworded(error: MarkedYAMLError) -> str:
    problem = str(error.problem)
    opened = error.context_mark.line + 1 if error.context_mark else 0
    character = problem.partition("found character ")[2].partition(" that")[0]
    for theirs, ours in _IN_OTHER_WORDS:
        if theirs in problem:
            return ours.format(character=character, opened=opened)
    return problem


def _shown(tag: str | None) -> str:
    return str(tag).replace(_TAG, "!!")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
