"""Scripts as they are sent: without what only their readers need, which is a fifth of them also when it is packed.

Gone are comments, indentation, ends of lines and spaces but between words, and commas and semicolons before what closes a list or block;
`const` is sent as the shorter `let`. Whatever may hold spaces that count is found first and left alone: texts, templates, regular expressions.

This is no parser. It relies on how `cluster/web` is written: a template holds no other template, a regular expression follows
punctuation, a loop has a body, an array no hole at its end, every statement that is no block a semicolon. The tests of the client run what is sent.
"""

import re

_LITERAL = r"""'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`"""
_EXPRESSION = r"(?<=[=(,:!&|?])(?P<space> ?)(?P<expression>/(?![/*])(?:\\.|\[(?:\\.|[^]\\\n])*]|[^/\\\n])+/)"
_GAP = r"(?P<gap>(?:\s+|//.*|/\*[\s\S]*?\*/)+)"
_LAST = r"(?P<last>[;,]\s*(?=})|,\s*(?=[\])]))"
_TOKEN = re.compile(rf"(?P<literal>{_LITERAL})|{_EXPRESSION}|{_LAST}|{_GAP}|(?P<const>\bconst\b)")
_APART = re.compile(r"[\w$+-]")
"""What a space may keep apart: words, and signs that would become another (`a - -b`)."""


def sent(script: str) -> str:
    """Return what a browser is sent of a script."""
    return _TOKEN.sub(_left, script)


def _left(found: re.Match[str]) -> str:
    if found["last"]:
        return ""
    if found["const"]:
        return "let"
    if found["gap"] is None:
        return found["literal"] or found["expression"]
    before, after = found.string[max(0, found.start() - 1) : found.start()], found.string[found.end() : found.end() + 1]
    return " " if _APART.match(before) and _APART.match(after) else ""
