"""What would leave a site, before anything does: a Job's first Tasks rehearsed on one site's data, byte for byte.
Backends, the round loop and a Job come in; nothing here opens a connection."""

from __future__ import annotations

from foedus.preview.rehearsal import Leaving, dry_run, rehearsed
from foedus.preview.shown import row, words

__all__ = ["Leaving", "dry_run", "rehearsed", "row", "words"]
