"""Errors that people read: each names the site, the stage and the remedy.
Nothing may come in here; every room above raises these."""

from __future__ import annotations

from collections.abc import Mapping


class FoedusError(Exception):
    """The root of every error that foedus raises on purpose; `code` is the exit code of the command line."""

    code = 1


class NoRun(FoedusError):
    """No run of this name is kept on this machine."""


class JobError(FoedusError):
    """The Job cannot be built or run as it is written."""

    code = 3


class Incompatible(JobError):
    """Two parts of a Job do not go together; raised when the Job is built."""


class SiteError(FoedusError):
    """Something failed at one site; `site`, `stage` and `remedy` are in the message."""

    code = 4

    def __init__(self, site: str, stage: str, why: str, remedy: str = "") -> None:
        super().__init__(f"site {site!r}, {stage}: {why}" + (f"; {remedy}" if remedy else ""))
        self.site, self.stage, self.why, self.remedy = site, stage, why, remedy


class Refused(SiteError):
    """An update that cannot be used; the run goes on without it while its quorum stands."""


class Paused(FoedusError):
    """Too few sites settled well; the run keeps its place and goes on when they return. `absent`: site -> why."""

    code = 5

    def __init__(self, why: str, absent: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.absent = dict(absent or {})


class JournalError(FoedusError):
    """A journal that does not verify, or that contradicts what is being replayed."""

    code = 6


class Denied(FoedusError):
    """An identity, grant or policy that forbids what was asked."""

    code = 7


class WireError(FoedusError):
    """A message that cannot be read, or a connection that failed."""

    code = 8


class Relayed(Exception):
    """What code of a Job's raised in another process, as text; `told` is that without what may quote data."""

    def __init__(self, whole: str, told: str) -> None:
        super().__init__(whole)
        self.told = told


class StoreError(FoedusError):
    """Storage that cannot be opened, read or written; the message holds the remedy."""


class Alone(FoedusError):
    """Sites that cannot train at once and have to do it one after another; the message says why."""


class Missing(FoedusError):
    """An optional library that is not installed; the message holds the `pip install` line."""

    code = 9

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'foedus[{extra}]'")


EXTRAS = {
    "alembic": "server",
    "dp_accounting": "privacy",
    "fsspec": "server",
    "jax": "jax",
    "lightgbm": "lightgbm",
    "lightning": "lightning",
    "monai": "monai",
    "nacl": "linkage",
    "nibabel": "monai",
    "peft": "transformers",
    "pydicom": "monai",
    "ray": "ray",
    "sklearn": "sklearn",
    "sqlalchemy": "server",
    "torch": "torch",
    "transformers": "transformers",
}


def explained(error: ImportError) -> Exception:
    """Missing with the `pip install` line where a library of an extra is not there; any other error as it is."""
    library = (error.name or "").partition(".")[0]
    return Missing(library, EXTRAS[library]) if library in EXTRAS else error
