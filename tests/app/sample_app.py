"""An app as somebody would write one; shards import it by name."""

import threading
import time
from typing import Any

from cluster.app import NULL, Harbor

app = Harbor()
projects = app.keys("projects")
RELEASE = threading.Event()
"""Set to let `stuck` go."""


@app.query(["sums", "{a}", "{b}"], stale_time=60, gc_time=None)
async def total(a: int, b: int) -> dict[str, int]:
    """Add up."""
    return {"total": int(a) + int(b)}


@app.query(["plain", "{name}"], stale_time="infinity", retry=0)
def plain(name: str) -> Any:
    """Behave as the name says."""
    match name:
        case "raises":
            raise ValueError("no such thing")
        case "no json":
            return {1, 2}
        case "deep":
            value: Any = 1
            for _ in range(1_000):
                value = [value]
            return value
    return {"hello": name}


@app.query(["blocks"], retry=0)
async def blocks() -> int:
    """Block the loop of its own thread."""
    time.sleep(0.2)
    return 1


@app.query(["numbers", "{upto}"], infinite={"initial": 0, "page_size": 3}, stale_time="infinity")
async def numbers(upto: int, page_param: int) -> list[dict[str, int]]:
    """Give a page of numbers."""
    return [{"id": n} for n in range(page_param, min(page_param + 3, upto))]


async def stuck() -> None:
    """Never give the loop back, until it is let go."""
    RELEASE.wait()


@app.on("events", "count:up", channel="counters", key=["counters", "{data.name}"], when_missing="create")
def count(old: Any, event: Any) -> Any:
    """Count events."""
    if event.data.get("fail"):
        raise RuntimeError("cannot count")
    if event["data"].get("nothing"):
        return None
    if event.data.get("null"):
        return NULL
    return {"n": (old or {"n": 0})["n"] + 1, "last": event.event}


@app.mutation(
    "greet",
    optimistic=[{"set": {"key": ["greetings", "{name}"], "value": {"text": "...", "by": "{mutation_id}"}}}],
    result=[{"set": {"key": ["greetings", "{name}"], "value": "{response}"}}],
    scope="{name}",
    variables=["name"],
    delay=0,
)
async def greet(name: str, mutation_id: str, polite: bool = False) -> dict[str, Any]:
    """Greet, but nobody rudely."""
    if name == "nobody":
        raise ValueError("who?")
    return {"text": f"Good day, {name}" if polite else f"Hi, {name}", "by": mutation_id}
