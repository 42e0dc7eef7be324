"""An app that shapes events; ingestors import it by name."""

from typing import Any

from cluster.app import NULL, Event, Harbor

app = Harbor()


@app.transform("events", channel="readings", when={"/kind": "reading"}, rename={"c": "celsius"})
def to_celsius(event: Event) -> Any:
    """Turn a reading in Fahrenheit into one in Celsius; whatever is asked for goes wrong."""
    match event.data.get("ask"):
        case "leave out":
            return None
        case "null":
            return NULL
        case "raise":
            raise ValueError("no thermometer")
        case "no json":
            return {1, 2}
        case "steer":
            raise SystemExit(1)
    return {"id": event.data["id"], "c": round((event.data["f"] - 32) * 5 / 9), "by": f"{event.event} {event.channel}"}


app.on("events", "reading", channel="readings", rule={"set": {"key": ["reading", "{data.id}"], "value": "{data}"}})
