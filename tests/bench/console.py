"""What an open console costs the cluster: the CPU of its processes with one and without, in turn, under the same load.

Turns are short, and each pair of them goes the other way round than the one before, so that what drifts is in both alike; the cost is
the median of the pairs' differences, with the interval that drawing the pairs anew gives. CPU time is counted, not the time that
passes: what else runs on the machine disturbs it less. Between turns actors are read no more as soon as nobody has asked for a while.

`played` is a console without a browser, whose own work would slow the cluster on the same cores: it watches all five reserved entries at
once, where the page watches two at most. `shown` is the page, in Chromium, whose processes are not counted. What looks at the key tree cost is
measured apart, since they are far between: `SPARING` times as long as one takes.
"""

import asyncio
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from cluster.actors.observation import LASTS_S, ROUND_S
from cluster.core.reserved import KEYS
from tests.web.browser import CHROMIUM

ENTRIES = 100_000
PAIRS, TURN_S = 12, 5.0
SETTLE_S = LASTS_S + 2 * ROUND_S
"""Until actors are read, or no more, after somebody has come or gone."""
AT_ONCE = 64
LOOK_S, SPARING = 10.0, 400
"""Between two looks, and how many times as long as one takes: as `keys.js` has them."""
PLACES = ("[]", '["items"]', '["metrics"]')
LOOKS = 20
DRAWN = 2_000


@contextmanager
def played(harbor: Any) -> Iterator[Counter[str]]:
    """Watch every reserved entry; count what comes."""
    got: Counter[str] = Counter()
    over = threading.Event()

    def watch() -> None:
        with connect(f"ws://{harbor.host}:{harbor.port}/v1/socket", proxy=None) as socket:
            for number, key in enumerate(KEYS.values()):
                asked = {"type": "subscribe", "id": number, "key": orjson.loads(key), "mode": "patch"}
                socket.send(orjson.dumps(asked).decode())
            while not over.is_set():
                with suppress(TimeoutError):
                    got["bytes"] += len(socket.recv(timeout=0.2))
                    got["frames"] += 1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield got
    finally:
        over.set()
        thread.join()


@contextmanager
def shown(harbor: Any) -> Iterator[Counter[str]]:
    """Open the page on its overview."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        browser.new_page().goto(f"http://{harbor.host}:{harbor.port}/")
        yield Counter()
        browser.close()


async def _fill(harbor: Any) -> None:
    async with aiohttp.ClientSession(f"http://{harbor.host}:{harbor.port}") as http:
        numbers = iter(range(ENTRIES))

        async def put() -> None:
            for number in numbers:
                params = {"key": f'["items",{number}]', "ack": "memory"}
                async with http.put("/v1/entries", params=params, json={"id": number, "pad": "x" * 150}) as answer:
                    assert answer.status == 200, await answer.text()

        await asyncio.gather(*(put() for _ in range(AT_ONCE)))


def _cpu_s(pids: Collection[int]) -> dict[int, float]:
    """What each process has used, to the nanosecond: hundredths of a second, as /proc has them, are as much as is looked for here."""
    used = {}
    for pid in pids:
        with suppress(OSError):  # it has ended
            used[pid] = time.clock_gettime(~pid << 3 | 2)  # its CPU clock: clock_getcpuclockid(3)
    return used


def _used(before: dict[int, float], after: dict[int, float], names: dict[int, str]) -> Counter[str]:
    used: Counter[str] = Counter()
    for pid in before.keys() & after.keys():
        used[names[pid]] += after[pid] - before[pid]
    return used


def _looks(harbor: Any, names: dict[int, str]) -> tuple[float, float]:
    """Return what a look at the places takes, and the CPU that it costs."""
    took: list[float] = []
    used: list[float] = []
    for is_look in (False, True) * LOOKS:
        before, began = _cpu_s(names), time.perf_counter()
        if is_look:
            for place in PLACES:
                harbor.get(f"/v1/keys?branches=true&prefix={quote(place)}")
            took.append(time.perf_counter() - began)
        else:
            time.sleep(statistics.median(took) if took else 0.2)
        used.append(_used(before, _cpu_s(names), names).total())
    differences = [used[turn + 1] - used[turn] for turn in range(0, len(used), 2)]
    return statistics.median(took), statistics.median(differences)


def _interval(values: list[float]) -> tuple[float, float]:
    """Return where the median lies with 95 %, by drawing anew from what was measured."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(DRAWN))
    return medians[DRAWN * 25 // 1000], medians[DRAWN * 975 // 1000]


def console(
    running: Callable[..., AbstractContextManager[Any]],
    quantile: Callable[[dict[float, int], dict[float, int], float], float],
    opened: Callable[[Any], AbstractContextManager[Counter[str]]],
    rate: int,
) -> dict[str, Any]:
    """Return the cores used without a console, what one costs more, and how old changes are with and without."""
    with running(20, keys=10) as (blaster, harbor, clients):
        asyncio.run(_fill(harbor))
        blaster.ask("blast 50000 3")  # warm
        names = harbor.processes()
        look_s, look_cpu_s = _looks(harbor, names)
        cores: dict[bool, list[Counter[str]]] = {False: [], True: []}
        ages: dict[bool, Counter[float]] = {False: Counter(), True: Counter()}
        got: Counter[str] = Counter()
        last = 0

        def turn(is_open: bool) -> None:
            nonlocal last
            if rate:
                blaster.tell(f"blast {rate} {SETTLE_S + TURN_S + 1}")
            time.sleep(SETTLE_S)
            aged = harbor.histogram("end_to_end_seconds")
            before, began = _cpu_s(names), time.perf_counter()
            time.sleep(TURN_S)
            after, took = _cpu_s(names), time.perf_counter() - began
            used = _used(before, after, names)
            cores[is_open].append(Counter({name: used[name] / took for name in used}))
            for bound, count in harbor.histogram("end_to_end_seconds").items():
                ages[is_open][bound] += count - aged.get(bound, 0)
            if rate:
                last = blaster.answer()["last"]

        for pair in range(PAIRS):
            for is_open in (False, True) if pair % 2 else (True, False):
                if is_open:
                    with opened(harbor) as got:
                        turn(is_open)
                else:
                    turn(is_open)
        without = statistics.median(each.total() for each in cores[False])
        pairs = list(zip(cores[False], cores[True], strict=True))
        more = [there.total() - none.total() for none, there in pairs]
        low, high = _interval(more)
        looks = look_cpu_s / max(LOOK_S, SPARING * look_s)
        of_processes = {
            name: statistics.median(there[name] - none[name] for none, there in pairs) for name in cores[True][0]
        }
        return {
            "cores_without": round(without, 3),
            "more_cores": round(statistics.median(more), 4),
            "more_percent": round(statistics.median(more) / without * 100, 1),
            "more_percent_low": round(low / without * 100, 1),
            "more_percent_high": round(high / without * 100, 1),
            "more_cores_of": {
                name: round(each, 4) for name, each in sorted(of_processes.items(), key=lambda item: -item[1])
            },
            "look_s": round(look_s, 2),
            "looks_percent": round(looks / without * 100, 2),
            **{
                f"age_p{share}_{name}_ms": round(quantile({}, ages[is_open], share / 100), 1)
                for share in (50, 99)
                for is_open, name in ((False, "without"), (True, "with"))
            },
            "frames_per_s": round(got["frames"] / (SETTLE_S + TURN_S), 1),
            "kb_per_s": round(got["bytes"] / (SETTLE_S + TURN_S) / 1000, 1),
            "is_exact": not rate or clients.ask(f"final {last} 500")["exact"],
        }
