"""`fd.attack`: attacks on the very bytes that leave a site of a Job, with and without each defence.
A Job and its sites come in; the site's own data is read to say how near the attacks came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus import launch
from foedus.audit import defences, releasing
from foedus.audit.findings import Audit, Finding, Picture
from foedus.audit.leaving import ROUNDS, Watched, watched
from foedus.audit.matching import Known, arrays
from foedus.audit.releasing import Neighbours, Scene, joined
from foedus.audit.trying import Seen, Tried, not_tried, tried
from foedus.audit.view import View, views
from foedus.data import Pairs, Split, take
from foedus.errors import Incompatible, JobError, Paused, SiteError
from foedus.job import Job
from foedus.keys import Key, key
from foedus.pool import Pool
from foedus.work import Among

MOST_OTHERS = 20  # sites whose records stand for what an attacker has from elsewhere
NOISE = 256  # records of noise where nobody has any


class Held(NamedTuple):
    """What a site trains on, as it is and as arrays, and what else it has, as arrays."""

    split: Split
    inside: Pairs
    outside: Pairs | None


def attack(
    job: Job,
    sites: Any = None,
    *,
    site: str | None = None,
    against: str | Sequence[str] | Mapping[str, Job] | None = None,
    seed: int = 0,
    records: int | None = None,
    rounds: int | None = None,
    shadows: int = 4,
    canaries: int = 64,
    neighbours: Neighbours = "record",
    epsilon: float | Mapping[str, float] | None = None,
    delta: float = 1e-5,
    steps: int = 600,
    say: Callable[[str], object] = lambda text: None,
) -> Audit:
    """The Audit of what leaves `site` (the first by name) when `job` runs over `sites`, under each defence.

    against: words as `none,clip=1.0+int8,secagg` or a mapping word -> Job (None: the Job as it stands, beside none and
    secagg). records: the site trains on so many of its records only: 1 is the worst case. rounds: in place of the
    Job's. shadows: shadow models for LiRA (0: leaves it out); canaries: of the audit of ε (0: leaves it out), which are
    records of the site or, with neighbours="site", sites. epsilon: the ε that is claimed at `delta`, of all defences or
    by word. steps: of each search for inputs. Raises JobError, Missing.
    """
    pool = launch.bind(sites)
    target = pool.names[0] if site is None else site
    _check(target, pool, records, shadows, canaries, neighbours, steps, delta)
    jobs = defences.chosen(job, against, len(pool))
    claims = _claims(epsilon, jobs)
    here = key(seed, 0, 0, target, "attack")
    holds = _held(job, pool, target, seed, records)
    findings, pictures, found = list[Finding](), list[Picture](), list[Tried]()
    for word, variant in jobs.items():
        say(f"{word}: {variant.rounds if rounds is None else rounds} rounds, then attacks on site {target}")
        scene = _scene(word, variant, pool, target, holds, seed, rounds, here)
        try:
            run = watched(variant, pool, target, seed, rounds, {target: holds[target].split})
            found = _all(scene, run, holds, shadows, steps)
            if canaries:
                say(f"{word}: {canaries} canaries")
                audited = releasing.canaries(scene, canaries, neighbours, delta, claims.get(word))
                found.append((audited, None))
        except (Incompatible, SiteError, Paused) as error:
            if len(jobs) == 1:
                raise
            found = [not_tried(word, word, "the run", str(error))]
        findings += [finding for finding, _ in found]
        pictures += [picture for _, picture in found if picture is not None]
    return Audit(_about(job, jobs, target, holds[target], len(pool), seed, rounds, delta), findings, pictures)


def _all(scene: Scene, run: Watched, holds: Mapping[str, Held], shadows: int, steps: int) -> list[Tried]:
    found = list[Tried]()
    for view in views(run):
        inside = [holds[name].inside for name in view.sites if name in holds]
        truth, learner = joined(*inside), scene.job.learner
        known = scene.known if len(view.sites) == 1 else _known(holds, view)
        found += tried(Seen(scene.defence, view, truth.x, truth.y, known, learner, scene.key(view.on), steps))
    return found + [(finding, None) for finding in releasing.membership(scene, run, shadows)]


def _scene(
    word: str, job: Job, pool: Pool, target: str, holds: Mapping[str, Held], seed: int, rounds: int | None, here: Key
) -> Scene:
    mine = holds[target]
    known = _known(holds, None, target)
    return Scene(word, job, pool, target, mine.split, mine.inside, mine.outside, known, seed, rounds, here)


def _held(job: Job, pool: Pool, target: str, seed: int, records: int | None) -> dict[str, Held]:
    """What the site holds, cut to so many records, and what others do."""
    bench, found = job.bench(seed), {}
    names = dict.fromkeys([target, *pool.names[: MOST_OTHERS + 1]])
    for name in names:
        split = bench.split(name, Among(pool))
        inside, rest = split.train, None
        if name == target and records is not None and records < len(split.train):
            order = np.arange(len(split.train))
            inside, rest = take(split.train, order[:records]), take(split.train, order[records:])
        parts = [
            Pairs(*arrays(part, name)) for part in (rest, split.valid, split.test) if part is not None and len(part)
        ]
        x, y = arrays(inside, name)
        if x.dtype.kind not in "fiub":
            raise JobError(f"site {name!r}: its inputs are {x.dtype}, and attacks recover numbers")
        found[name] = Held(Split(inside, split.valid, split.test), Pairs(x, y), joined(*parts) if parts else None)
    return found


def _known(holds: Mapping[str, Held], view: View | None, target: str = "") -> Known:
    """What an attacker may have: records that nobody trains on, and those of other sites where only one is attacked."""
    parts = [held.outside for held in holds.values() if held.outside is not None]
    parts += [held.inside for name, held in holds.items() if name != target] if view is None else []
    every = joined(*(held.inside for held in holds.values()), *parts)
    low, high = float(every.x.min()), float(every.x.max())
    if parts:
        there = joined(*parts)
        return Known(there.x, there.y, low, high, True)
    draw = key(0, 0, 0, target, "noise").numpy()
    x = draw.uniform(low, high, (NOISE, *every.x.shape[1:])).astype(every.x.dtype)
    return Known(x, every.y[draw.integers(len(every), size=NOISE)], low, high, False)


def _claims(epsilon: float | Mapping[str, float] | None, jobs: Mapping[str, Job]) -> dict[str, float]:
    given = epsilon if isinstance(epsilon, Mapping) else {} if epsilon is None else dict.fromkeys(jobs, epsilon)
    strange = sorted(given.keys() - jobs.keys())
    if strange:
        raise JobError(f"epsilon names {strange[0]!r}, which is none of the defences {', '.join(jobs)}")
    if not all(value >= 0 for value in given.values()):
        raise JobError(f"epsilon={epsilon!r}: an ε is a number of at least 0")
    return {word: float(value) for word, value in given.items()}


def _check(
    target: str,
    pool: Pool,
    records: int | None,
    shadows: int,
    canaries: int,
    neighbours: str,
    steps: int,
    delta: float,
) -> None:
    if target not in pool:
        there = ", ".join(pool.names[:10]) + (" …" if len(pool) > 10 else "")
        raise JobError(f"there is no site {target!r}: the sites are {there}")
    if neighbours not in ("record", "site"):
        raise JobError(f"neighbours={neighbours!r}: it is 'record' or 'site'")
    if not 0 <= delta < 1:
        raise JobError(f"delta={delta!r}: it is a chance, at least 0 and below 1")
    for name, value, least in (("records", 1 if records is None else records, 1), ("shadows", shadows, 0),
                               ("canaries", canaries, 0), ("steps", steps, 1)):  # fmt: skip
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise JobError(f"{name}={value!r}: it must be a whole number of at least {least}")


def _about(
    job: Job, jobs: Mapping[str, Job], target: str, mine: Held, sites: int, seed: int, rounds: int | None, delta: float
) -> dict[str, Any]:
    count, shape = len(mine.inside), mine.inside.x.shape[1:]
    played = rounds or job.rounds or ROUNDS
    said = (
        f"Attacked: site {target} of {sites}, {count} record{'s' if count > 1 else ''} of shape "
        f"{'×'.join(map(str, shape)) or 'one number'}, its first update of {played} round{'s' if played > 1 else ''}; "
        "the attacker has the Job's code, the models, the range of numbers and records of others."
    )
    return {
        "said": said, "job": job.name or "", "digest": job.digest, "site": target, "sites": sites, "records": count,
        "shape": list(shape), "seed": seed, "rounds": played, "delta": delta, "defences": list(jobs),
    }  # fmt: skip
