"""What must never be written down: values of environment variables in a recipe, credentials in URLs.

A recipe is shown with `${env:NAME}` in place of the value (`Document.shown`). What others say is free
text, such as the message of an exception in a plugin; in it the values that this process has read are
looked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
"""What stands in place of the credentials of a URL."""

_known: dict[str, str] = {}  # value -> what is shown in its place

_NAMES = (
    r"(?:[\w.-]*(?:token|secret|passw(?:or)?d|signature|credential)|(?:[\w.-]*[_-])?(?:api[_-]?)?key|"
    r"apikey|sig|auth|pwd)"
)
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/?#'\"]+)@")
_QUERY = re.compile(rf"(?i)([?&]{_NAMES}=)([^\s&#'\"\\]+)")


def conceal(value: str, shown: str) -> None:
    """Show something else wherever a value occurs in what this process says.

    Not where the value could be met by chance, or is no secret: short words, numbers, paths that exist.
    `Document` hides those where a message quotes the value of the key.

    Args:
      value: of a variable.
      shown: the reference to it.
    """
    long = len(value) >= (8 if value.isalpha() and value.islower() else 4)
    if long and not _is_number(value) and not _is_path(value):
        escaped = json.dumps(value)[1:-1]
        for form in (value, escaped, repr(value)[1:-1], quote(value, safe="")):
            _known[form] = shown


def redacted(text: str) -> str:
    """A text without the values that `conceal` was given, and without credentials in URLs."""
    for value in sorted(_known, key=len, reverse=True):  # one may be a part of another
        text = text.replace(value, _known[value])
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """`https://user:token@host/?api_key=x` as `https://***@host/?api_key=***`; references stay."""
    text = _USER.sub(lambda found: f"{found[1]}{_hidden(found[2])}@", text)
    return _QUERY.sub(lambda found: f"{found[1]}{_hidden(found[2])}", text)


def redacted_tree(value: Any) -> Any:
    """Plain data with every text in it redacted."""
    if isinstance(value, Mapping):
        return {key: redacted_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def lacks_credentials(text: str) -> bool:
    """Whether `without_credentials` has taken something out, so that the text can no longer be used."""
    found = [*_USER.finditer(text), *_QUERY.finditer(text)]
    return any(match[2] == HIDDEN for match in found)


@lru_cache
def digest_of_secret(value: str) -> str:
    """A hash by which equal values are known, and no value is found.

    Digests of recipes are compared between runs and machines, so that nothing random can be mixed in;
    what protects a value that could be guessed is the time and memory that each guess takes (scrypt,
    RFC 7914, with 16 MiB).
    """
    found = hashlib.scrypt(value.encode(errors="surrogatepass"), salt=b"rlframe", n=2**14, r=8, p=1)
    return found[:32].hex()


def _hidden(found: str) -> str:
    return found if re.fullmatch(r"(?:\$\{env:[^{}]*\}:?)+", found) else HIDDEN


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_path(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # a NUL
        return False
