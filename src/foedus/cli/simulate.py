"""The verb `run`: a job on this machine, simulated or in a real federation on loopback.
The launcher comes in when the verb is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foedus.cli.given import (
    HomeOption,
    JsonOption,
    PrivacyOption,
    ResourceOption,
    SiteOption,
    amounts,
    as_paths,
    counted_or_named,
    pairs,
    plain_sites,
)
from foedus.cli.kept import tell
from foedus.cli.show import next_step, note, quiet

EXAMPLES = """Examples:

\b
  foedus run job.py                                           the sites that job.py offers as `sites`
  foedus run job.py --site north=data/north --site south=data/south
  foedus run job.py mu=0.1 --rounds 5 --seed 1                an option of `def job(mu=0.01)`
  foedus run job.py --backend processes --workers 2           several sites at a time
  foedus run job.py --backend ray --resource gpu=0.25         on a Ray cluster: RAY_ADDRESS, or one on this machine
  foedus run job.py --backend network                         a real server and agents on this machine
  foedus run job.py --json > result.json
"""


def add_to(app: typer.Typer) -> None:
    app.command(epilog=EXAMPLES)(run)


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A Python file that defines `job`.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the job.")] = None,
    backend: Annotated[str, typer.Option(help="auto, local, vectorized, processes, ray or network.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes, or actors of `ray`.")] = None,
    resource: ResourceOption = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, in place of RAY_ADDRESS.")] = None,
    sites: Annotated[int | None, typer.Option(help="A number of sites, in place of --site.")] = None,
    site: SiteOption = None,
    seed: Annotated[int, typer.Option(help="Names all randomness of the run.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds, in place of the Job's.")] = None,
    privacy: PrivacyOption = None,
    exact: Annotated[bool, typer.Option("--exact", help="Forbid backends whose bits only come close.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a job on this machine (or, with --backend network, in a real federation on loopback)."""
    from foedus import jobfile, launch
    from foedus import runs as kept

    given = counted_or_named(sites, site)
    with quiet():
        loaded = jobfile.load(job, pairs(options, "KEY=VALUE"))
        named = loaded.sites if given is None else given
        source = {
            "file": str(loaded.path),
            "options": loaded.options,
            "rounds": rounds,
            "privacy": privacy,
            "sites": plain_sites(named),
            "workers": workers,
            "resources": amounts(resource),
            "address": address,
        }
        chosen = loaded.job.given(rounds=rounds, privacy=privacy)
        folder = kept.new_folder(chosen.name or loaded.path.parent.name, home)
        note(f"run {folder.name} on backend {launch.resolve(backend, exact)}")
        next_step(f"`foedus resume {folder.name}` goes on where it stands")
        result = launch.run(
            chosen,
            as_paths(named),
            backend=backend,
            seed=seed,
            workers=workers,
            resources=amounts(resource),
            address=address,
            exact=exact,
            folder=folder,
            source=source,
            say=note,
            show=True,
        )
    tell(result, json)
