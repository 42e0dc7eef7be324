"""A text that counts how often it is compared, to tell work that grows with depth from work that does not."""

from typing import ClassVar


class CountedText(str):
    """See the module."""

    __slots__ = ()
    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        CountedText.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__
