"""The command line: `stanchion …`. Every error is one clear line on stderr and an exit code of its own.

The commands live beside this file, by what they talk to: `commands_event` and `commands_visitor` to a server,
`commands_data` to a data folder, `commands_keys` to either, `commands_verify` to whatever is to be proven. `serve` is
here; its flags are read off `Config`, so that a setting is described once.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from engine.errors import NotPermitted, Refused, StanchionError, UsageError
from server import (
    commands_data,
    commands_event,
    commands_follow,
    commands_keys,
    commands_rehearse,
    commands_verify,
    commands_visitor,
)
from server.config import Config, Loaded, load
from server.keys import read_key_file
from server.main import FollowOptions
from server.main import serve as run_daemon
from server.terminal import complain, notes, print_json, print_table

INTERRUPTED = 130

app = typer.Typer(
    name="stanchion",
    help="A self-hosted virtual waiting queue.",
    epilog="Example: stanchion serve --demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stanchion {version('stanchion')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A self-hosted virtual waiting queue."""


# ---- serve --------------------------------------------------------------------------------------------


def _flags() -> list[inspect.Parameter]:
    """Return a keyword parameter for every setting; the text is checked by `load`, with all the others."""
    flags = []
    for name, field in Config.model_fields.items():
        option, default = "--" + name.replace("_", "-"), field.default
        if field.annotation is bool:
            annotation: Any = Annotated[bool | None, typer.Option(option, help=field.description)]
        else:
            shown = f" Default: {default}" if default not in (None, ()) else ""
            is_number = int in (field.annotation, *get_args(field.annotation))
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            listed = f" One of {', '.join(choices)}." if choices else ""
            about = f"{field.description}{listed}{shown}"
            info = typer.Option(option, metavar="N" if is_number else "TEXT", help=about)
            annotation = Annotated[str | None, info]
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return flags


def _with_flags(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command that takes `**flags` a flag for every setting."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [*own, *_flags()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@app.command(epilog=notes("stanchion serve --demo --data ./data", 65, 74, 75, 78))
@_with_flags
def serve(
    *,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Read settings from a TOML file.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every setting and where it came from, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --print-config: write JSON.")] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Start although acknowledged records are damaged; cuts the log there.")
    ] = False,
    **flags: object,
) -> int:
    """Run the server. Settings come from flags, then STANCHION_*, then the file of --config, then the defaults."""
    file = config or (Path(os.environ["STANCHION_CONFIG"]) if os.environ.get("STANCHION_CONFIG") else None)
    loaded = load(flags, file)
    for name in loaded.unknown_env:
        complain(f"{name} in the environment is no setting and is ignored")
    if print_config:
        _print_config(loaded, as_json)
        return 0
    return run_daemon(loaded.config, accept_loss=accept_loss)


@app.command(
    epilog=notes(
        "stanchion follow http://127.0.0.1:8080 --key-file data/keys/replication.key --data standby", 65, 74, 75, 77, 78
    )
)
@_with_flags
def follow(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the primary's replication is reached.")],
    *,
    key_file: Annotated[Path, typer.Option(metavar="FILE", help="File with the replication key of the primary.")],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Read settings from a TOML file.")] = None,
    **flags: object,
) -> int:
    """Follow a primary: a warm standby, read replica and WebSocket edge in one.

    With --data it is a standby, which keeps the log and can take over; without, an edge, which keeps nothing.
    """
    file = config or (Path(os.environ["STANCHION_CONFIG"]) if os.environ.get("STANCHION_CONFIG") else None)
    loaded = load(flags, file)
    for name in loaded.unknown_env:
        complain(f"{name} in the environment is no setting and is ignored")
    is_edge = loaded.sources["data"] == "default"
    return run_daemon(loaded.config, follow=FollowOptions(url.rstrip("/"), read_key_file(key_file), is_edge))


def _print_config(loaded: Loaded, as_json: bool) -> None:
    if as_json:
        print_json({name: {"value": value, "source": source} for name, value, source in loaded.lines()})
    else:
        print_table(("setting", "value", "from"), loaded.lines())


commands_visitor.add_to(commands_event.app)
app.add_typer(commands_event.app)
app.add_typer(commands_keys.app)
commands_verify.add_to(app)
commands_follow.add_to(app)
commands_data.add_to(app)
commands_rehearse.add_to(app)


# ---- the way in -----------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises and never shows a traceback."""
    try:
        result: Any = app(list(arguments), prog_name="stanchion", standalone_mode=False)
    except Refused as refused:
        return _fail(str(refused), NotPermitted.exit_code)
    except StanchionError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(error.format_message(), UsageError.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return _fail(f"this is a bug in Stanchion: {type(error).__name__}: {error} ({place})", StanchionError.exit_code)
    return result if isinstance(result, int) else 0


def _fail(problem: str, code: int) -> int:
    complain(problem)
    return code


def main() -> None:
    """Run what the command line says."""
    sys.exit(run(sys.argv[1:]))
