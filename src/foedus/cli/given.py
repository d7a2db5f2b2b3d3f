"""What stands on the command line, in the form in which the rooms below take it.
Only typer comes in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

HomeOption = Annotated[Path | None, typer.Option("--home", help="FOEDUS_HOME for this command.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique prefix of it, or its folder.")]
SiteOption = Annotated[
    list[str] | None, typer.Option("--site", metavar="NAME=PATH", help="A site and its data; repeat it.")
]

PrivacyOption = Annotated[
    str | None,
    typer.Option("--privacy", metavar="none|secagg|hospital", help="In place of the Job's own; see docs/privacy.md."),
]

ResourceOption = Annotated[
    list[str] | None,
    typer.Option("--resource", metavar="NAME=AMOUNT", help="What a site's work takes of a Ray cluster; repeat it."),
]


def amounts(texts: list[str] | None) -> dict[str, float] | None:
    """{"gpu": 0.25} from ["gpu=0.25"]; None where nothing is given."""
    try:
        return {name: float(amount) for name, amount in pairs(texts, "--resource NAME=AMOUNT").items()} or None
    except ValueError:
        raise typer.BadParameter(f"--resource {' '.join(texts or ())}: an amount is a number, as in gpu=0.25") from None


def pairs(texts: list[str] | None, form: str) -> dict[str, str]:
    """{"a": "1"} from ["a=1"]; a text of another form is an error that shows the right one."""
    for text in texts or ():
        if "=" not in text:
            raise typer.BadParameter(f"{text!r} is not of the form {form}")
    found = dict(text.split("=", 1) for text in texts or ())
    if len(found) < len(texts or ()):
        raise typer.BadParameter(f"a name stands twice in {' '.join(texts or ())}: {form}, each once")
    return found


def data_of(texts: list[str] | None) -> dict[str, str] | None:
    """site -> path of its data, which are there; None if no site is named."""
    sites = pairs(texts, "--site NAME=PATH")
    for name, path in sites.items():
        if not Path(path).expanduser().exists():
            raise typer.BadParameter(f"site {name!r}: there is no {path}")
    return sites or None


def counted_or_named(count: int | None, texts: list[str] | None) -> Any:
    """What --sites counts, or what --site names; None where neither is given."""
    if count is not None and texts:
        raise typer.BadParameter("--sites counts sites, --site names them: give one of the two")
    return data_of(texts) if count is None else count


def plain_sites(sites: Any) -> Any:
    """Sites as a journal can keep them: a count, or absolute paths; None for what it cannot."""
    if isinstance(sites, Mapping) and all(isinstance(v, (str, Path)) for v in sites.values()):
        return {name: str(Path(path).expanduser().resolve()) for name, path in sites.items()}
    return sites if isinstance(sites, int) else None


def as_paths(sites: Any) -> Any:
    """The same sites, what was text a path."""
    if isinstance(sites, Mapping) and all(isinstance(v, (str, Path)) for v in sites.values()):
        return {name: Path(v).expanduser() for name, v in sites.items()}
    return sites


def token_of(text: str) -> str:
    """The token itself; with `-` that on standard input, which no list of processes shows."""
    return sys.stdin.readline().strip() if text == "-" else text
