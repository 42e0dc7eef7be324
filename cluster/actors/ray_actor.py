"""What Ray has of an actor: two methods that pass on what is called.

Ray wraps every method of an actor's class, inherited ones too, in one of its own that could record a span, and the actor's own calls
(`self.now()`) go through it as well. It also pickles, disassembles and sends the class to its head each time that one is made of it, which
for the shells took longer than their start. So Ray gets this class, and the shells are objects of which it knows nothing.

What must not live here: what actors are (`shell`, `supervisor`), how they are called (`handles`).
"""

from importlib import import_module
from inspect import isawaitable
from typing import Any, ClassVar

from ray.util import serialization_addons

serialization_addons.apply = lambda _: None
"""Ray loads Pydantic, Starlette and Arrow, whatever of them is installed, so that it could send what is made by them between actors. What ours
send is bytes and plain values, and each process would load them at its start, for a third of it and 20 MB."""


class RayActor:
    """See the module. Subclasses are made by `handles.create`."""

    MODULE: ClassVar[str]
    """Where the actor's class is, which has this one's name. Whoever makes an actor need not import it."""

    async def __init__(self, *arguments: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        kind = getattr(import_module(self.MODULE), type(self).__name__)
        self._actor = kind.__new__(kind)
        await self._actor.__init__(*arguments)  # asynchronous like this one

    async def call(self, *pieces: bytes) -> bytes:
        """Take a message, and answer."""
        answer: bytes = await self._actor.call(*pieces)
        return answer

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call another method."""
        answer = getattr(self._actor, method)(*arguments)
        return await answer if isawaitable(answer) else answer
