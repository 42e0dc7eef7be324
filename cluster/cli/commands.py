"""`harbor`: every command. Readable on a terminal, JSON lines in a pipe; errors in one line on standard error.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted. Ray is imported only by `up` and `down`, so that the others start quickly.
It is one thing because a command is a few lines between what was typed and what does it.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import orjson
import typer
from typer.main import get_command

from cluster import __version__
from cluster.cli.printable import printable, printable_json
from cluster.errors import ErrorCode, HarborError, StoreError

app = typer.Typer(
    name="harbor",
    help="A distributed realtime query cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
P = ParamSpec("P")

Url = Annotated[str, typer.Option("--url", envvar="HARBOR_URL", help="The gateway.")]
Token = Annotated[str | None, typer.Option("--token", envvar="HARBOR_TOKEN", help="Credentials.")]
Key = Annotated[str, typer.Argument(help='A query key, JSON: \'["projects","detail","7"]\'')]
URL = "http://127.0.0.1:8700"
UNSETTLED = ("scheduled", "queued", "paused", "pending")
"""Statuses of a mutation that will have others; `core.mutation`, which has them too, takes long to import."""
SCALE_TIMEOUT_S = 120.0
SCALE_PAUSE_S = 0.2
USAGE = frozenset({ErrorCode.BAD_REQUEST, ErrorCode.BAD_KEY, ErrorCode.TOO_DEEP, ErrorCode.TOO_LARGE})


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"harbor: {printable(message.splitlines()[0]) if message else 'failed'}\n")
    raise typer.Exit(code)


def _name_faults(lines: list[str]) -> None:
    """Print a configuration's faults; where there are some, the command ends."""
    for line in lines:
        sys.stderr.write(f"{printable(line)}\n")
    if lines:
        raise typer.Exit(2)


def _command(run: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into one line and an exit code."""

    @wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            run(*args, **kwargs)
        except StoreError as error:  # of files on this machine; the code, INTERNAL, would say that it is a bug
            _fail(error.message, 1)
        except HarborError as error:
            _fail(f"{error.message} ({error.code})", 2 if error.code in USAGE else 1)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; say nothing more
            raise typer.Exit(0) from None

    return wrapped


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _line(value: Any) -> None:
    sys.stdout.write((printable_json(value) if _is_terminal() else orjson.dumps(value).decode()) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{printable(text)}\n")


def _pretty(value: Any) -> None:
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    Console().print(JSONHighlighter()(Text(printable_json(value, indented=True))), soft_wrap=True)


def _key(text: str) -> list[Any]:
    from cluster.core.query_key import normalized

    key: list[Any] = orjson.loads(normalized(text))  # where no number is longer than a message can say
    return key


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"harbor {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A distributed realtime query cache."""


@app.command()
@_command
def up(
    config: Annotated[Path | None, typer.Argument(help="harbor.yaml; without one ./harbor.yaml, or the demo.")] = None,
    address: Annotated[
        str | None, typer.Option(help="An existing Ray cluster; without it a local Ray is started.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Gateway port, in place of the configured one.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Start the sample upstream as well.")] = False,
    app_: Annotated[
        str | None, typer.Option("--app", metavar="MODULE:NAME", help="A Python application object.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Be a node of that Ray meanwhile, without CPUs; with --address HOST:PORT.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the cluster running at the end; `harbor down` stops it.")
    ] = False,
) -> None:
    """Run the cluster in the foreground until Ctrl-C."""
    from cluster.cli.up import run

    if address is None and (join or keep):
        raise HarborError(ErrorCode.BAD_REQUEST, "--join and --keep need --address: a Ray of our own ends with us")
    run(config, address=address, port=port, demo=demo, app=app_, joins=join, keeps=keep)


@app.command()
@_command
def node(
    arguments: Annotated[list[str], typer.Argument(metavar="-- RAY_START_ARGUMENTS", help="Of `ray start`.")],
    grace: Annotated[str, typer.Option(help="How long clients may take to be sent elsewhere.")] = "30s",
) -> None:
    """Be a node of a Ray cluster; at SIGTERM its gateways and shards are drained before Ray stops."""
    import signal
    import threading

    from cluster.cli.up import prepare_ray
    from cluster.config import duration

    grace_s = duration("--grace", grace) / 1000.0
    prepare_ray("a Ray that others set up")
    from cluster.actors.node import run

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    raise typer.Exit(run(arguments, grace_s, stop))


keys_app = typer.Typer(name="key", help="API keys.", no_args_is_help=True)
app.add_typer(keys_app)


@keys_app.command("new")
@_command
def new_key(
    read: Annotated[list[str] | None, typer.Option(help="A key prefix to read; [] is every key.")] = None,
    write: Annotated[list[str] | None, typer.Option(help="A key prefix to write.")] = None,
    mutate: Annotated[list[str] | None, typer.Option(help="A mutation, or NAME*.")] = None,
    presence: Annotated[list[str] | None, typer.Option(help="A topic, or TOPIC*.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="See and change the cluster.")] = False,
    name: Annotated[str | None, typer.Option(help="Whose key it is; without it a random name.")] = None,
    tenant: Annotated[str, typer.Option(help="Under which tenant, where there are tenants.")] = "",
) -> None:
    """Make an API key: prints it, which nothing does again, and its line for the keys file."""
    import secrets

    from cluster.core.grants import Grants, line
    from cluster.core.tenant import NAME_TEXT, is_name

    grants = Grants(
        [_key(each) for each in read or ()],
        [_key(each) for each in write or ()],
        mutate or [],
        presence or [],
        admin,
    )
    if tenant and not is_name(tenant):
        raise HarborError(ErrorCode.BAD_REQUEST, f"--tenant: expected {NAME_TEXT}, got {tenant!r:.60}")
    key = f"hk_{secrets.token_urlsafe(32)}"
    made = line(name or secrets.token_hex(4), key, grants, tenant)
    if _is_terminal():
        sys.stderr.write("harbor: the key, for the client, and its line, for gateway.auth.keys_file:\n")
    sys.stdout.write(f"{key}\n{made}\n")


@app.command()
@_command
def down(
    address: Annotated[str | None, typer.Option(help="The Ray cluster; without it the local one.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The cluster's name; without it the only one that runs there.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="As in `harbor up`.")] = False,
) -> None:
    """Stop a cluster."""
    if join and address is None:
        raise HarborError(ErrorCode.BAD_REQUEST, "--join needs --address")
    from cluster.cli.up import prepare_ray

    prepare_ray(address)
    from cluster.actors import deploy

    stopped = deploy.down(address, name, joins=join)
    if stopped is None:
        which, where = "" if name is None else f" {name!r}", "" if address is None else f" at {address}"
        raise HarborError(ErrorCode.NOT_FOUND, f"no cluster{which} is running{where}")
    sys.stdout.write(f"harbor stopped: {stopped}\n")


@app.command()
def check(config: Annotated[Path, typer.Argument(help="harbor.yaml")]) -> None:
    """Validate a configuration: one line for each fault, exit 2."""
    from cluster.config import check as find_faults

    _name_faults(find_faults(config))
    if _is_terminal():
        sys.stdout.write(f"{config}: no faults\n")


@app.command()
@_command
def status(
    url: Url = URL,
    token: Token = None,
    json: Annotated[bool, typer.Option("--json", help="As /v1/cluster.")] = False,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Show events that came to nothing, newest first.")
    ] = False,
) -> None:
    """Show what runs where."""
    from cluster.client import HttpClient

    described = HttpClient(url, token).cluster(dead_letters=dead_letters)
    if json or not _is_terminal():
        _line(described)
        return
    from cluster.cli.tables import show_dead_letters, show_status

    if dead_letters:
        show_dead_letters(described["dead_letters"])
    else:
        show_status(described)


@app.command()
@_command
def scale(
    counts: Annotated[list[str], typer.Argument(help="Such as shards=8 ingestors=4.", metavar="KIND=N...")],
    url: Url = URL,
    token: Token = None,
) -> None:
    """Have another number of actors, live; ends when everything is where it belongs."""
    from cluster.client import HttpClient

    wanted: dict[str, int] = {}
    for count in counts:
        kind, _, number = count.partition("=")
        if not number.isdecimal():
            raise HarborError(ErrorCode.BAD_REQUEST, f"expected KIND=N such as shards=8, got {count!r}")
        wanted[kind] = int(number)
    client = HttpClient(url, token)
    client.scale(wanted)
    deadline = time.monotonic() + SCALE_TIMEOUT_S
    while (described := client.cluster())["scaling"] or any(
        len(described[kind]) != number for kind, number in wanted.items()
    ):
        if not described["scaling"] and any(described["wanted"][kind] != number for kind, number in wanted.items()):
            raise HarborError(
                ErrorCode.CONFLICT,
                "other numbers are wanted by now: somebody asked for them, or the supervisor began anew before this was "
                "under way; see harbor status, and ask again",
            )
        if time.monotonic() > deadline:
            raise HarborError(ErrorCode.TIMEOUT, "it was accepted, and goes on: see harbor status")
        time.sleep(SCALE_PAUSE_S)
    if _is_terminal():
        sys.stdout.write(", ".join(f"{number} {kind}" for kind, number in wanted.items()) + "\n")
    else:
        _line(wanted)


@app.command()
@_command
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it may not be there yet, or is empty.")],
    url: Url = URL,
    token: Token = None,
) -> None:
    """Copy all shards' stores while the cluster runs."""
    from cluster.cli.backup import make, told
    from cluster.client import HttpClient

    made = told(make(HttpClient(url, token), directory))
    if _is_terminal():
        sys.stdout.write(f"{directory}: {made['entries']} entries of {made['shards']} shards, {made['bytes']} bytes\n")
    else:
        _line(made)


@app.command()
@_command
def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A backup.")],
    config: Annotated[
        Path | None, typer.Argument(help="Of the cluster, which may not run; without one ./harbor.yaml.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only look the backup over.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Set aside what is stored there.")] = False,
    shard: Annotated[list[int] | None, typer.Option(help="Only of this shard (several: again).")] = None,
) -> None:
    """Fill the stores of a cluster that does not run from a backup."""
    from cluster.cli.backup import look_over, put_back
    from cluster.cli.up import configuration_here

    if config is None and not check:
        config = configuration_here()
    if check == (config is not None):
        raise HarborError(
            ErrorCode.BAD_REQUEST,
            "expected either CONFIG, the cluster to restore, or --check"
            + ("" if check else "; there is no ./harbor.yaml"),
        )
    if config is None:
        found = look_over(directory)
        if _is_terminal():
            sys.stdout.write(f"{directory}: whole: {found['entries']} entries of {found['shards']} shards\n")
        else:
            _line(found)
        return
    from msgspec import to_builtins

    from cluster.config import check as find_faults
    from cluster.config import load

    _name_faults(find_faults(config))
    done = put_back(directory, load(config, dict(os.environ)), shards=shard or [], replaces=replace)
    if not _is_terminal():
        _line(to_builtins(done))
        return
    counted = f"{done.entries} entries, {done.mutations} mutations, {len(done.shards)} shards"
    sys.stdout.write(f"restored into {done.directory}: {counted}\n")
    if not done.is_exact:
        sys.stdout.write("the shards are not those of the backup: entries are out of date until fetched anew\n")
    for place in done.replaced:
        sys.stdout.write(f"what was there is kept as {place}\n")


@app.command()
@_command
def get(
    key: Key,
    why: Annotated[
        bool, typer.Option("--why", help="Say where the data came from, and why it is stale if it is.")
    ] = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Read an entry; a missing one of a declared query is fetched."""
    from cluster.client import HttpClient

    _key(key)
    if why:
        from cluster.cli.provenance import explain

        for line in explain(HttpClient(url, token).get(key, fetch="never"), time.time() * 1000):
            _say(line)
        return
    entry = HttpClient(url, token).get(key)
    _pretty(entry) if _is_terminal() else _line(entry)


@app.command("set", context_settings={"ignore_unknown_options": True})  # a value may be -5
@_command
def set_(
    key: Key, value: Annotated[str, typer.Argument(help="The data, JSON.")], url: Url = URL, token: Token = None
) -> None:
    """Replace an entry's data."""
    from cluster.client import HttpClient

    _key(key)
    try:
        data = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise HarborError(ErrorCode.BAD_REQUEST, f"the value is not JSON: {value[:60]!r}: {error}") from error
    version = HttpClient(url, token).put(key, data)
    if _is_terminal():
        sys.stdout.write(f"version {version}\n")
    else:
        _line({"version": version})


@app.command()
@_command
def keys(
    prefix: Annotated[str, typer.Argument(help="A key prefix, JSON.")] = "[]", url: Url = URL, token: Token = None
) -> None:
    """List entries."""
    from cluster.client import HttpClient

    _key(prefix)
    rows = HttpClient(url, token).keys(prefix)
    if _is_terminal():
        from cluster.cli.tables import show_keys

        show_keys(rows)
        return
    for row in rows:
        _line(row)


@app.command()
@_command
def invalidate(
    key: Key,
    exact: Annotated[bool, typer.Option("--exact", help="This entry only, not what is under it.")] = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Mark entries as out of date; watched ones are fetched anew."""
    from cluster.client import HttpClient

    matched = HttpClient(url, token).invalidate(_key(key), exact=exact)
    if _is_terminal():
        sys.stdout.write(f"{matched} matched\n")
    else:
        _line({"matched": matched})


@app.command()
@_command
def mutations(
    pending: Annotated[bool, typer.Option("--pending", help="Only those that are not settled.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on a terminal, too.")] = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """List mutations, oldest first."""
    from cluster.client import HttpClient

    rows = HttpClient(url, token).mutations(UNSETTLED if pending else ())
    if _is_terminal() and not json:
        from cluster.cli.tables import show_mutations

        show_mutations(rows)
        return
    for row in rows:
        _line(row)


@app.command()
@_command
def undo(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Of a mutation.")], url: Url = URL, token: Token = None
) -> None:
    """Cancel a mutation that was not sent yet."""
    from cluster.client import HttpClient

    mutation = HttpClient(url, token).undo(id_)
    if _is_terminal():
        _say(f"{mutation['id']} {mutation['status']}")
    else:
        _line(mutation)


@app.command()
@_command
def watch(
    key: Key,
    prefix: Annotated[bool, typer.Option("--prefix", help="Everything under the key.")] = False,
    patch: Annotated[bool, typer.Option("--patch", help="Print changes as patches.")] = False,
    url: Url = URL,
    token: Token = None,
) -> None:
    """Print changes as they arrive, until Ctrl-C."""
    parsed = _key(key)
    show: Callable[[dict[str, Any]], None] = _line
    if _is_terminal():
        from cluster.cli.tables import show_message

        show = show_message

    async def follow() -> None:
        from cluster.client import watch as follow_key

        messages = follow_key(url, parsed, prefix=prefix, mode="patch" if patch else "data", token=token)
        async with aclosing(messages):  # also where the reader of what is shown leaves
            async for message in messages:
                if message["type"] != "position":
                    message.pop("sub", None)
                    show(message)

    asyncio.run(follow())


@app.command()
@_command
def verify(
    url: Url = URL,
    token: Token = None,
    seconds: Annotated[float, typer.Option(help="How long there is load.")] = 30.0,
    faults: Annotated[str, typer.Option(help="Some of flap, slow, pause, kill; empty: load alone.")] = "flap,slow",
    rate: Annotated[float, typer.Option(help="Writes a second.")] = 100.0,
    clients: Annotated[int, typer.Option(help="Clients that watch.")] = 12,
    keys: Annotated[int, typer.Option(help="Entries that are written.")] = 40,
    ack: Annotated[
        str,
        typer.Option(help="Levels that writes ask for in turn, of memory, replicated, durable; empty: the default."),
    ] = "",
    prefix: Annotated[str, typer.Option(help="Under which entries are made, and deleted again.")] = '["harbor-verify"]',
    max_silence: Annotated[float, typer.Option(help="Seconds that nothing may be delivered for.")] = 30.0,
    max_age_p99: Annotated[float | None, typer.Option(help="Milliseconds, of the age of deliveries.")] = None,
    mutation: Annotated[
        str, typer.Option(help="A declared mutation to begin again and again; it reaches its service.")
    ] = "",
    variables: Annotated[str, typer.Option(help="Of that mutation, JSON.")] = "{}",
    seed: Annotated[int | None, typer.Option(help="Of the schedule, to repeat one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Kill and stop processes without asking.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Drive load and faults against a running cluster, and check the delivery contract; exit 1 where it does not hold."""
    from cluster.cli.verify import settings_of
    from cluster.cli.verify import verify as run

    settings = settings_of(
        seconds=seconds,
        faults=faults,
        rate=rate,
        clients=clients,
        keys=keys,
        prefix=_key(prefix),
        max_silence_s=max_silence,
        max_age_p99_ms=max_age_p99,
        mutation=mutation,
        variables=variables,
        seed=seed,
        yes=yes,
        ack=ack,
    )
    raise typer.Exit(run(url, token, settings, json=json))


def main() -> None:
    """Run the command line. Wrong use, which Typer would frame and explain, is one line too."""
    command = get_command(app)
    try:
        code = command.main(prog_name="harbor", standalone_mode=False)
    except typer.Abort:
        sys.stderr.write("harbor: aborted\n")
        code = 1
    except typer.TyperException as error:
        code = error.exit_code
        if type(error).__name__ == "NoArgsIsHelpError":  # which Typer does not export
            sys.stdout.write(f"{error.message}\n" if error.message else "")  # Rich, where it is used, has printed it
        else:
            said = " ".join(error.format_message().split()).removesuffix(".")
            meant = " ".join(["harbor", *_meant(command, sys.argv[1:])])
            sys.stderr.write(f"harbor: {said[:1].lower()}{said[1:]} (see {meant} --help)\n")
    sys.exit(code)


def _meant(command: Any, words: list[str]) -> Iterator[str]:
    """Yield the names that lead to the command that was meant: not every error says of which it is."""
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return
        yield word
