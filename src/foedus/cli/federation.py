"""Verbs of a federation's owner and of its server: federation create | invite | revoke | status, server start | status.
The server's code comes in when a verb is called."""

from __future__ import annotations

from typing import Annotated

import typer

from foedus.cli.show import note, out
from foedus.cli.simulate import HomeOption, JsonOption

Names = Annotated[list[str], typer.Argument(metavar="NAME...")]


def add_to(app: typer.Typer) -> None:
    federation = typer.Typer(
        no_args_is_help=True, help="Make a federation, invite to it, revoke.", rich_markup_mode=None
    )
    for verb in (create, invite, revoke, status):
        federation.command()(verb)
    server = typer.Typer(no_args_is_help=True, help="The federation's server.", rich_markup_mode=None)
    server.command("start")(start)
    server.command("status")(status)
    app.add_typer(federation, name="federation")
    app.add_typer(server, name="server")


def create(
    name: Annotated[str, typer.Argument(help="The federation's name.")] = "federation",
    host: Annotated[str, typer.Option(help="The name or address that sites reach the server by.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The one port of the server.")] = 8443,
    url: Annotated[
        list[str] | None, typer.Option(help="Addresses for sites, where they differ from host and port.")
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make a federation: the server's folder and the owner's key (keep a copy of `owner/` in a safe place)."""
    from foedus.home import folder
    from foedus.server import owner

    place = owner.found(folder(home), name, host, port, tuple(url or ()))
    found = {
        "federation": place.federation.name,
        "id": place.federation.id,
        "url": place.federation.urls[0],
        "server": str(place.folder),
        "owner": str(place.folder.parent / "owner"),
    }
    out(found, json)


def invite(
    names: Names,
    submitter: Annotated[bool, typer.Option("--submitter", help="May submit jobs; holds no data.")] = False,
    days: Annotated[int, typer.Option(help="How long the tokens are good for.")] = 7,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Print a one-time token for each name. Hand it over in secret: who has it can join under that name."""
    from foedus.home import folder
    from foedus.server import owner

    tokens = owner.invitations(folder(home), names, "submitter" if submitter else "site", days * 86_400)
    if json:
        out({"tokens": tokens}, True)
        return
    for name, token in tokens.items():
        note(f"{name}:")
        print(token)


def revoke(
    name: str,
    reason: Annotated[str, typer.Option(help="Why; the register keeps it.")] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Withdraw a site's or submitter's key; its connections end within a second."""
    from foedus.home import folder
    from foedus.server import owner

    owner.revoke(folder(home), name, reason)
    out({"revoked": name}, json)


def status(home: HomeOption = None, json: JsonOption = False) -> None:
    """Show what the running server says of itself."""
    from foedus.remote import connect

    out(connect(home=home).status(), json)


def start(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
    home: HomeOption = None,
) -> None:
    """Run the server in the foreground, until Ctrl-C."""
    import logging

    from foedus.errors import Missing
    from foedus.home import folder

    try:
        from foedus.server.__main__ import serve
    except ImportError as error:
        raise Missing(str(error.name), "server") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    serve(folder(home), host, port)
