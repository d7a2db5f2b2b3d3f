"""The verb `privacy plan`: what a differential privacy costs, before anything trains.
The accountants come in when the verb is called.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from foedus.cli.given import JsonOption
from foedus.cli.show import columns, note, out

RATE = "The share of sites (or of a site's records) that each step draws, each by itself; 1: everybody in every step."
STEPS = "Noisy steps a round: 1 where noise goes onto the round's sum, else a site's DP-SGD steps in one round."


def add_to(app: typer.Typer) -> None:
    verbs = typer.Typer(name="privacy", no_args_is_help=True, help="What a privacy costs.", rich_markup_mode=None)
    verbs.command()(plan)
    app.add_typer(verbs)


def plan(
    epsilon: Annotated[float, typer.Option(help="What all the rounds together may spend.")],
    rounds: Annotated[int, typer.Option(help="Rounds.")],
    sampling_rate: Annotated[float, typer.Option(help=RATE)],
    delta: Annotated[float, typer.Option(help="Well below one over the number of those protected.")] = 1e-5,
    steps: Annotated[int, typer.Option(help=STEPS)] = 1,
    batch: Annotated[
        int | None, typer.Option(help="How many a step draws on average: shows the noise on the mean.")
    ] = None,
    parameters: Annotated[int | None, typer.Option(help="Trainable parameters of the model.")] = None,
    clip: Annotated[float, typer.Option(help="The L2 norm to which each contribution is clipped.")] = 1.0,
    accountant: Annotated[str, typer.Option(help="pld (tight) or rdp.")] = "pld",
    json: JsonOption = False,
) -> None:
    """Print the noise that keeps a run within epsilon, what each round spends, and what the noise does to the mean.

    Nothing is assumed of the sampling: say what the Job really does. An epsilon holds only if each step draws everybody
    by himself with this chance (or takes all: 1); a cohort of fixed size is not that.
    """
    from foedus.privacy import accounting

    total = rounds * steps
    z = accounting.noise_multiplier(epsilon, sampling_rate, total, delta, accountant)  # type: ignore[arg-type]
    spent = {
        part: accounting.epsilon(z, sampling_rate, part * steps, delta, accountant)  # type: ignore[arg-type]
        for part in sorted({math.ceil(rounds / 4), math.ceil(rounds / 2), rounds})
    }
    found: dict[str, Any] = {
        "epsilon": epsilon, "delta": delta, "rounds": rounds, "steps": total, "sampling_rate": sampling_rate,
        "accountant": accountant, "noise_multiplier": z, "sigma": z * clip, "clip": clip, "spent": spent,
        "rdp_epsilon": accounting.epsilon(z, sampling_rate, total, delta, "rdp"),
        **_cost(z, clip, batch, parameters),
    }  # fmt: skip
    out(found, json, _lines(found))
    if not json and (batch is None or parameters is None):
        note("with --batch and --parameters it also says how large the noise on the mean is")


def _cost(z: float, clip: float, batch: int | None, parameters: int | None) -> dict[str, float]:
    """`noise`: standard deviation of a coordinate of the mean; `noise_norm`: its L2 norm, in clips."""
    found = {"noise": z * clip / batch} if batch else {}
    return found | ({"noise_norm": z * math.sqrt(parameters) / batch} if batch and parameters else {})


def _lines(found: dict[str, Any]) -> list[str]:
    everybody = (
        "everybody in every step" if found["sampling_rate"] == 1 else f"{found['sampling_rate']:g} in every step"
    )
    lines = [
        f"noise multiplier {found['noise_multiplier']:.4f}: on each sum, Gaussian noise of standard deviation "
        f"{found['sigma']:.4g} for a clip of {found['clip']:g}",
        f"it keeps {found['rounds']} rounds ({found['steps']} steps, {everybody}) within epsilon {found['epsilon']:g} "
        f"at delta {found['delta']:g} ({found['accountant']}; by rdp {found['rdp_epsilon']:.4f})",
        *columns(["after round", "epsilon"], [[str(r), f"{e:.4f}"] for r, e in found["spent"].items()]),
    ]
    if "noise" in found:
        lines.append(f"the mean: noise of standard deviation {found['noise']:.3g} in each coordinate")
    if "noise_norm" in found:
        lines.append(f"its length is about {found['noise_norm']:.3g} clips; no single update is longer than 1 clip")
    return lines
