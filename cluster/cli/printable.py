"""What came from outside, so that it cannot steer the terminal it is shown on.

An upstream, a client or who else answers at a gateway's address chooses it: escape sequences would set titles and colours or move the cursor,
and marks of direction would have it read as something else.

What must not live here: tables (`tables`), which bring Rich, for whose import errors do not wait.
"""

import json
from typing import Any

import orjson


def printable(value: Any) -> str:
    """Return a value's text with what is not printed escaped as Python has it."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value))


def printable_json(value: Any, *, indented: bool = False) -> str:
    """Return JSON with what is not printed escaped as JSON has it: it is the same value."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else None).decode()
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)
