"""`fd.compare`: runs each method under each seed, chooses options on valid data, and adds what to compare with.
Trials and references come in; what is finished is found again, so that a study goes on after a crash."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foedus import home, jobfile, launch
from foedus.errors import FoedusError, JobError
from foedus.files import write_atomic
from foedus.job import Job
from foedus.metrics import Metric
from foedus.remote import Remote
from foedus.study import references as refs
from foedus.study import variants
from foedus.study.methods import built, grid, methods
from foedus.study.score import Score, read, sign
from foedus.study.study import Study
from foedus.study.trial import Place, Trial, done, said
from foedus.wire import bundle

ABOUT = "study.json"


class Asked(NamedTuple):
    """What is compared, by which metric, over which sites and seeds, where."""

    methods: Mapping[str, Any]
    tune: Mapping[str, Any]
    seeds: Sequence[int]
    sites: Callable[[int], Any]
    metrics: Mapping[str, Metric]
    metric: str
    place: Place
    bare: bool = False  # the algorithm knows no learner, and measures itself


def compare(
    job: Any,
    *,
    sites: Any = None,
    seeds: int | Sequence[int] = range(5),
    tune: Mapping[str, Any] | None = None,
    references: Sequence[str] | None = None,
    metric: str | None = None,
    save: str | Path | None = None,
    backend: str = "auto",
    workers: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Study:
    """A Study of one or several methods over the same sites and seeds, beside the references.

    job: a Job, a function of options that returns one, a mapping name -> one of these, or a job file (its `methods`,
        else its `job`). The first method is the one that all others are compared with.
    sites: as in `Job.run`, or a function of the seed, and then intervals speak of other partitions, too. Or a real
        federation, `fd.connect()`: then `job` is a job file, and each run is one of the federation.
    tune: option -> values; all combinations are tried under all seeds, and the best mean on `valid` is taken. A mapping
        under a method's name holds options of this method alone. `test` decides nothing.
    references: "alone" (each site by itself, its round and options chosen on its own valid), "pooled" (the data of all
        in one place), "unseen-site" (the first method without a site, measured there; for every site). By default all
        of them; on a federation there is no "pooled".
    metric: what is compared and chosen by; the Job's `best`, else its first metric, else the loss.
    save: the study's folder, by default one in FOEDUS_HOME/studies. What is finished there is not done again, and what
        was cut off goes on, to the same numbers. `say` hears of each finished run.

    A site that a run goes on without, or at which a reference cannot be made, is left out there, and the Study says so.
    Raises FoedusError with the method, options and seed of a run that failed; under `tune`, only if all of them did.
    """
    made, real = methods(job), isinstance(sites, Remote)
    chosen = tuple(range(seeds) if isinstance(seeds, int) else seeds)
    beside = _references(references, real)
    _check(chosen, beside, made, tune or {})
    at = Path(save) if save is not None else default_folder(job)
    given = _by_seed(_offered(job) if sites is None else sites)
    first = built(*_first(made, tune or {}))
    table = first.table()
    by = metric or first.best or next((name for name in table if name != "loss"), "loss")
    if by not in table:
        raise JobError(f"compare(metric={by!r}): it is none of the metrics {sorted(table)}")
    on = "network" if real else _backend(at, backend, first, given(chosen[0]), chosen[0])
    file = Path(job).resolve() if isinstance(job, (str, Path)) else None
    if real and file is None:
        raise JobError("on a federation code travels as files: give compare the path of a job file with `methods`")
    code = bundle.digest(bundle.pack(file.parent, file.name)) if file else ""
    place = Place(at, on, workers, say, file, code)
    bare = first.learner is None and first.algorithm.measure is not None
    if bare and real and beside:
        raise JobError("on a federation an algorithm without a learner has no references: say references=()")
    if real:
        _check_open(made, tune or {})
    asked = Asked(made, tune or {}, chosen, given, table, by, place, bare)
    scores = _every(asked, beside)
    return Study(scores, by, table[by].better, next(iter(made)), at).save()


def _check_open(made: Mapping[str, Any], tune: Mapping[str, Any]) -> None:
    for name, each in made.items():
        if built(name, each, next(grid(name, each, tune))).seal:
            raise JobError(
                f"{name} is under secure aggregation, where no site's own metrics are known, and a study is of those: "
                "compare in a simulation, or real sites with privacy='none'"
            )


def default_folder(job: Any, given: Any = None) -> Path:
    """Where the studies of a job file are, or all others; their runs have names of their own, so they may share it."""
    name = Path(job).resolve().parent.name if isinstance(job, (str, Path)) else "study"
    return home.folder(given) / "studies" / (name or "study")


def _every(asked: Asked, references: Sequence[str]) -> list[Score]:
    tried = {name: _tried(asked, name, made) for name, made in asked.methods.items()}
    scores = [score for found in tried.values() for score in _chosen(asked, found)]
    name, made = next(iter(asked.methods.items()))
    makers = {
        "alone": lambda: _alone(asked, name, made),
        "pooled": lambda: _pooled(asked, name, made, tried[name]),
        "unseen-site": lambda: _unseen(asked, name, tried[name]),
    }
    return scores + [score for reference in references for score in makers[reference]()]


Tried = Sequence[Sequence[Score]]  # for each combination of options, the Score of each seed


def _tried(asked: Asked, name: str, made: Any) -> Tried:
    """The Scores of a method, all of its options under all seeds; options that fail are left out, if others do not."""
    found, options = [], list(grid(name, made, asked.tune))
    last: FoedusError | None = None
    for each in options:
        try:
            by = built(name, made, each).best
            found.append(
                [_score(asked, trial, by) for trial in _trials(asked, name, {"method": name, "options": each})]
            )
        except FoedusError as error:
            last = error
            asked.place.say(str(error))
    if not found and last is not None:
        raise last
    return found


def _trials(asked: Asked, name: str, words: Mapping[str, Any]) -> list[Trial]:
    """One for each seed; the words say of what Job."""
    job = variants.job(asked.methods, words)
    return [Trial(name, words["options"], seed, job, asked.sites(seed), words) for seed in asked.seeds]


def _score(
    asked: Asked, trial: Trial, by: str | None, reference: bool = False, apart: bool = False, own: bool = True,
    without: str | None = None,
) -> Score:  # fmt: skip
    """A trial's Score, of the round with the best `by`; `own`: of a site's own model, where it has one."""
    found = read(_run(trial, asked.place), asked.metrics, by, apart, own, without)
    if not any(asked.metric in values for values in found["sites"].values()):
        raise JobError(f"{said(trial)}: no site measured {asked.metric!r} on test; give sites a test part")
    return Score(trial.name, reference, trial.seed, dict(trial.options), **found)


def _run(trial: Trial, place: Place, backend: str | None = None) -> Path:
    try:
        return done(trial, place, backend)
    except FoedusError as error:
        known = FoedusError(f"{said(trial)}: {error}")
        known.code = error.code
        raise known from error


def _chosen(asked: Asked, tried: Tried, without: str | None = None) -> Sequence[Score]:
    """The Scores under the options with the best mean on valid; `without` a site's, its part is not looked at."""
    if len(tried) == 1:
        return tried[0]
    worth = [_worth(asked, scores, without) for scores in tried]
    if max(worth) == -float("inf"):
        raise JobError(f"{tried[0][0].method}: there is nothing to choose options by: give sites a valid part")
    return tried[worth.index(max(worth))]


def _worth(asked: Asked, scores: Sequence[Score], without: str | None = None, only: str | None = None) -> float:
    """How good options are on valid, larger is better; with an undefined value, they are not."""
    values = [_valid(score, asked.metric, without, only) for score in scores]
    if any(value is None for value in values):
        return -float("inf")
    return sign(asked.metrics[asked.metric]) * sum(v for v in values if v is not None) / len(values)


def _valid(score: Score, metric: str, without: str | None, only: str | None) -> float | None:
    if without is None and only is None:
        return score.valid.get(metric)
    names = [only] if only is not None else [site for site in score.valid_sites if site != without]
    values = [v for site in names if (v := score.valid_sites.get(site, {}).get(metric)) is not None]
    return sum(values) / len(values) if values else None


def _alone(asked: Asked, name: str, made: Any) -> list[Score]:
    """Each site by itself, which chooses round and options by its own valid part."""
    tried = []
    for options in grid(name, made, asked.tune):
        by = built(name, made, options).best
        if asked.bare:
            job = built(name, made, options)
            tried.append([_one_by_one(asked, job, options, seed) for seed in asked.seeds])
            continue
        trials = _trials(asked, "alone", {"method": name, "options": options, "reference": "alone"})
        tried.append([_score(asked, trial, by, reference=True, apart=True) for trial in trials])
    sites = sorted({site for scores in tried for score in scores for site in score.sites})
    best = {site: max(tried, key=lambda scores: _worth(asked, scores, only=site)) for site in sites}
    return [_apart(tried[0][i], {site: best[site][i] for site in sites}, len(tried) > 1) for i in range(len(tried[0]))]


def _one_by_one(asked: Asked, job: Job, options: Mapping[str, Any], seed: int) -> Score:
    """A run at each site, of an algorithm that has no learner whom a site could train by itself."""
    found, failed = dict[str, Score](), dict[str, FoedusError]()
    for site in launch.bind(asked.sites(seed)).names:
        trial = Trial(f"{site} alone", options, seed, refs.only(job, site), asked.sites(seed))
        try:
            found[site] = _score(asked, trial, job.best, reference=True, apart=True)
        except FoedusError as error:
            failed[site] = error
            asked.place.say(str(error))
    if not found:
        raise next(iter(failed.values()))
    valid = {site: score.valid_sites[site] for site, score in found.items() if site in score.valid_sites}
    why = {site: refs.cause(error, site) for site, error in failed.items()}
    return _left_out(found, why)._replace(method="alone", valid_sites=valid)


def _apart(score: Score, by_site: Mapping[str, Score], chosen: bool) -> Score:
    """One Score out of those whose options each site has chosen."""
    sites = {site: found.sites[site] for site, found in by_site.items() if site in found.sites}
    return score._replace(options={} if chosen else score.options, sites=sites, bytes=0)


def _pooled(asked: Asked, name: str, made: Any, beside: Tried) -> list[Score]:
    """One model for all data, measured at each site; without the sites that the method beside it had to do without."""
    tried = []
    absent = {
        seed: _absent([found for scores in beside for found in scores if found.seed == seed]) for seed in asked.seeds
    }
    for options in grid(name, made, asked.tune):
        job = built(name, made, options)
        tried.append([_one_place(asked, job, options, seed, absent[seed]) for seed in asked.seeds])
    return list(_chosen(asked, tried))


def _absent(scores: Sequence[Score]) -> dict[str, str]:
    """The sites that all of these runs left out."""
    first, *others = scores
    return {site: why for site, why in first.left_out.items() if all(site in score.left_out for score in others)}


def _one_place(asked: Asked, job: Job, options: Mapping[str, Any], seed: int, absent: Mapping[str, str]) -> Score:
    parts, why = refs.readable(job, asked.sites(seed), seed, absent)
    if asked.bare:
        held = {**refs.pool(parts), **parts}  # measured at the sites, and in the pool, which changes no measure of all
        plain = refs.only(job, refs.POOLED).replace(data=None, datasets=(), schema=None)
        whole = _score(asked, Trial(refs.POOLED, options, seed, plain, held), job.best, reference=True)
        sites = {site: values for site, values in whole.sites.items() if site != refs.POOLED}
        return whole._replace(sites=sites, valid_sites={}, bytes=0, left_out=why)
    trial = Trial(refs.POOLED, options, seed, refs.together(job), refs.pool(parts))
    folder = _run(trial, asked.place, "local")
    found = read(folder, asked.metrics, job.best)
    test, sites = refs.measured(job, refs.model(folder), parts, "test")
    own = {"test": test, "sites": sites, "valid_sites": {}, "bytes": 0, "left_out": why}
    return Score(refs.POOLED, True, seed, dict(options), **{**found, **own})


def _unseen(asked: Asked, name: str, tried: Tried) -> list[Score]:
    """The first method without a site, measured at that site: one Score a seed, over all sites."""
    found: dict[int, dict[str, Score]] = {seed: {} for seed in asked.seeds}
    failed: dict[int, dict[str, FoedusError]] = {seed: {} for seed in asked.seeds}
    names = sorted({site for scores in tried for score in scores for site in score.sites})
    for site in names:
        options = _chosen(asked, tried, without=site)[0].options
        words = {"method": name, "options": dict(options), "reference": "unseen-site", "site": site}
        for trial in _trials(asked, f"without {site}", words):
            best = built(name, asked.methods[name], options).best
            try:
                found[trial.seed][site] = _score(asked, trial, best, reference=True, own=False, without=site)
            except FoedusError as error:
                failed[trial.seed][site] = error
                asked.place.say(str(error))
    for seed in asked.seeds:
        if not found[seed]:
            raise next(iter(failed[seed].values()))
    return [
        _left_out(scores, {s: f"without it: {e}" for s, e in failed[seed].items()}) for seed, scores in found.items()
    ]


def _left_out(scores: Mapping[str, Score], failed: Mapping[str, str] = {}) -> Score:
    """One Score out of those of each site; `failed`: site -> why there is none."""
    first = next(iter(scores.values()))
    why = {site: why for score in scores.values() for site, why in score.left_out.items() if site not in scores}
    return first._replace(
        method="unseen-site",
        sites={site: score.sites[site] for site, score in scores.items() if site in score.sites},
        test={}, valid={}, valid_sites={},
        bytes=sum(s.bytes for s in scores.values()),
        seconds=sum(s.seconds for s in scores.values()),
        left_out={**why, **failed},
    )  # fmt: skip


def _references(asked: Sequence[str] | None, real: bool) -> Sequence[str]:
    """Those asked for; by default all that there can be."""
    if asked is None:
        return [name for name in refs.REFERENCES if not real or name != refs.POOLED]
    if real and refs.POOLED in asked:
        raise JobError("on a federation data stays where it is and is not pooled: leave 'pooled' out of references=…")
    return asked


def _check(seeds: Sequence[int], references: Sequence[str], made: Mapping[str, Any], tune: Mapping[str, Any]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise JobError(f"compare(seeds={seeds!r}): a number of seeds, or whole numbers that differ")
    for name in references:
        if name not in refs.REFERENCES:
            raise JobError(f"compare(references={references!r}): choose from {', '.join(refs.REFERENCES)}")
    if odd := [key for key, value in tune.items() if isinstance(value, Mapping) and key not in made]:
        raise JobError(f"tune={{{odd[0]!r}: …}} is none of the methods {', '.join(made)}")
    if taken := sorted(set(made) & {*references}):
        raise JobError(f"a method is called {taken[0]!r}, which is a reference's name: give it another")


def _first(made: Mapping[str, Any], tune: Mapping[str, Any]) -> tuple[str, Any, Mapping[str, Any]]:
    name, function = next(iter(made.items()))
    return name, function, next(grid(name, function, tune))


def _offered(job: Any) -> Any:
    """The sites of a job file."""
    return getattr(jobfile.imported(job), "sites", None) if isinstance(job, (str, Path)) else None


def _by_seed(sites: Any) -> Callable[[int], Any]:
    """A function of the seed, each seed's sites made once; `sites` is one if it takes a `seed`, or must be given it."""
    taken = inspect.signature(sites).parameters.values() if callable(sites) else ()
    if any(p.name == "seed" or p.default is p.empty for p in taken):
        return functools.cache(sites)
    kept = sites() if callable(sites) else sites
    return lambda seed: kept


def _backend(at: Path, backend: str, job: Job, sites: Any, seed: int) -> str:
    """The backend of all runs of the study: chosen once, for `vectorized` only comes close to the bits of others."""
    about = at / ABOUT
    if about.exists():
        return str(json.loads(about.read_text())["backend"])
    found, _ = launch.chosen(launch.resolve(backend), False, job, launch.bind(sites), seed)
    at.mkdir(parents=True, exist_ok=True)
    write_atomic(about, json.dumps({"backend": found}).encode())
    return found
