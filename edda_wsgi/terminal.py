"""What the commands print: texts of strangers, shown and never obeyed.

A message of an error, a reason, a payload may hold what a terminal takes for a command: to recolour, to move, to
overwrite the line above, to turn the direction of writing. Each such character is shown by its number instead.
"""

from __future__ import annotations

import re

_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 100


def visible(text: str) -> str:
    """*text* on one line, with nothing in it that a terminal obeys."""
    return _shown(text).replace("\n", "\\n")


def visible_lines(text: str) -> str:
    """The same, with its lines."""
    return _shown(text.replace("\t", "    "))


def short(text: str) -> str:
    """*text* on one line, cut if it is long."""
    text = _shown(" ".join(text.split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _shown(text: str) -> str:
    return _OBEYED.sub(lambda found: _number(ord(found[0])), text)


def _number(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
