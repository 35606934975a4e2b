"""`stanchion promote`: make a follower the primary."""

from pathlib import Path
from typing import Annotated

import typer

from server.admin_client import AdminClient, read_key
from server.terminal import notes, print_json


def promote(
    url: Annotated[str, typer.Argument(metavar="URL", help="The follower that is to be the primary.")],
    key_file: Annotated[
        Path,
        typer.Option("--key-file", envvar="STANCHION_ADMIN_KEY_FILE", metavar="FILE", help="File with an owner's key."),
    ],
    old_primary_is_dead: Annotated[
        bool,
        typer.Option(
            "--old-primary-is-dead", help="You have made sure that the old primary is stopped; only if it is silent."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> int:
    """Make a follower the primary.

    The old primary is asked to hand over first, so that nothing is lost. If its port refuses, the promotion goes on; if
    it is merely silent, it may be alive behind a broken network, and only you can make sure that it is not.
    """
    answer = AdminClient(url, read_key(key_file)).post(
        "/v1/admin/promote", {"old_primary_is_dead": old_primary_is_dead}
    )
    if as_json:
        print_json(answer)
    else:
        print(f"{url} is the primary of term {answer['term']}; {answer['lost'] or 'nothing was lost'}.")
    return 0


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog=notes("stanchion promote http://127.0.0.1:8081 --key-file data/keys/admin.key", 69, 77, 78))(
        promote
    )
