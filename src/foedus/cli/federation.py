"""Verbs of a federation's owner and of its server: federation create | invite | revoke | status, server start | status.
The server's code comes in when a verb is called."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from foedus.cli.given import HomeOption, JsonOption
from foedus.cli.show import note, out
from foedus.errors import explained

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

    _need_the_servers_libraries()
    place = owner.found(folder(home), name, host, port, tuple(url or ()))
    federation, keys = place.federation, place.folder.parent / "owner"
    found = {
        "federation": federation.name,
        "id": federation.id,
        "url": federation.urls[0],
        "server": str(place.folder),
        "owner": str(keys),
    }
    lines = [
        f"federation {federation.name} is made; sites will reach it at {', '.join(federation.urls)}",
        f"the owner's key is in {keys}: keep a copy in a safe place, and away from the server if you can",
        "next: `foedus server start`, and `foedus federation invite NAME...` for the sites' tokens",
    ]
    out(found, json, lines)


def invite(
    names: Names,
    submitter: Annotated[bool, typer.Option("--submitter", help="May submit jobs; holds no data.")] = False,
    days: Annotated[int, typer.Option(help="How long the tokens are good for.")] = 7,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Print a one-time token for each name. Hand it over in secret: who has it can join under that name.

    Of one name its token alone is printed, of several a line NAME TOKEN for each.
    """
    from foedus.home import folder
    from foedus.server import owner

    tokens = owner.invitations(folder(home), names, "submitter" if submitter else "site", days * 86_400)
    if json:
        out({"tokens": tokens}, True, [])
        return
    verb = "login" if submitter else "site join"
    note(f"each token is good for {days} days and for one use, by whoever has it: hand it over in secret")
    note(f"on its machine: `foedus {verb} TOKEN`")
    for name, token in tokens.items():
        print(token if len(tokens) == 1 else f"{name} {token}", flush=True)


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
    said = (
        f"{name!r} is revoked and its connections are cut; only a new token and a new key (a new --home) let it back in"
    )
    out({"revoked": name}, json, [said])


def status(home: HomeOption = None, json: JsonOption = False) -> None:
    """Show what the running server says of itself."""
    from foedus.remote import connect

    with connect(home=home) as remote:
        found = remote.status()
    lines = [
        f"federation {found['federation']}: its server has been up for {found['up']:.0f} s",
        f"{found['sites']} sites are enrolled (`foedus sites`); the register is at epoch {found['epoch']}",
        f"{found['runs']} runs, {found['running']} of them at work (`foedus runs`)",
        f"{found['free'] / 1e9:.1f} GB of disk are free",
    ]
    out(found, json, lines)


def start(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Run the server in the foreground, until Ctrl-C; with --json it prints one object as soon as it answers."""
    import logging

    from foedus.home import folder

    _need_the_servers_libraries()
    from foedus.server.__main__ import serve

    def ready(found: dict[str, Any]) -> None:
        out(found, json, [])
        sys.stdout.flush()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    serve(folder(home), host, port, ready)


def _need_the_servers_libraries() -> None:
    """Raises Missing before anything is made."""
    try:
        import foedus.store.sql  # noqa: F401
    except ImportError as error:
        raise explained(error) from error
