"""`harbor verify`: a run (`cluster.verify`), and what it found in lines for people or as JSON.

Exit code 0: the contract held; 1: it did not, or the run could not be made; 130: interrupted, and it held until then.
"""

import asyncio
import secrets
import signal
import sys
from typing import Any

import msgspec
import orjson

from cluster.cli.printable import printable
from cluster.errors import ErrorCode, RequestError
from cluster.verify.plan import ON_PROCESSES, Settings, acks_of, checked, faults_of
from cluster.verify.run import Report, Run, Trace

INTERRUPTED = 130


def settings_of(
    *,
    faults: str,
    prefix: list[Any],
    seed: int | None,
    yes: bool,
    ack: str = "",
    variables: str = "{}",
    **more: Any,
) -> Settings:
    """Return what the options say.

    Raises:
        RequestError: they cannot be followed.
    """
    made = Settings(
        faults=faults_of(faults),
        prefix=tuple(prefix),
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        acks=acks_of(ack),
        variables=_object(variables),
        **more,
    )
    made = checked(made)
    if ON_PROCESSES & set(made.faults) and sys.stdin.isatty() and not yes:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            "--faults: kill and pause stop processes of a running cluster: say --yes if you mean it",
        )
    return made


def _object(text: str) -> dict[str, Any]:
    try:
        read = orjson.loads(text)
    except orjson.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise RequestError(ErrorCode.BAD_REQUEST, f"--variables: expected a JSON object, got {text[:60]!r}")
    return read


def verify(url: str, token: str | None, settings: Settings, *, json: bool) -> int:
    """Run, print, and return the exit code.

    Raises:
        HarborError: it cannot begin.
    """
    report = asyncio.run(_run(url, token, settings))
    if json:
        sys.stdout.write(orjson.dumps(msgspec.to_builtins(report)).decode() + "\n")
    else:
        sys.stdout.write("\n".join(map(printable, lines(report))) + "\n")
    if report.violation is not None:
        return 1
    return 0 if report.is_whole else INTERRUPTED


async def _run(url: str, token: str | None, settings: Settings) -> Report:
    run = Run(url, token, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop.set)
    return await run.run()


def lines(report: Report) -> list[str]:
    """Return a report for people."""
    found = [] if report.violation is None else _violation(report.violation)
    state = "VIOLATED" if report.violation else "held" if report.is_whole else "held until it was interrupted"
    found.append(f"delivery contract: {state}; {report.seconds:.1f} s, seed {report.seed}")
    found.append("checked: " + ", ".join(f"{count} {what}" for what, count in report.counts.items()))
    ages = report.ages
    found.append(
        f"ages of {ages['count']:.0f} deliveries: p50 {ages['p50_ms']} ms, p99 {ages['p99_ms']} ms, max {ages['max_ms']} ms"
    )
    if report.faults:
        found.append("faults: " + ", ".join(f"{count} x {what}" for what, count in report.faults.items()))
    found += [f"longest silence after {what}: {seconds} s" for what, seconds in report.silences_s.items()]
    return found + [f"note: {note}" for note in report.notes]


def _violation(trace: Trace) -> list[str]:
    return [
        f"violation: {trace.rule}: {trace.what}",
        f"  key: {trace.key}",
        f"  expected: {trace.expected}",
        f"  got: {trace.got}",
        f"  at: {trace.at_s} s, last fault: {trace.fault}, seed {trace.seed}",
        *([f"  seen by: {trace.client}, whose last messages were"] if trace.client else []),
        *(f"    {message}" for message in trace.recent),
    ]
