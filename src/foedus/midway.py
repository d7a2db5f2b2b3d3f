"""Where a long local training stands, kept on disk while it lasts: one that was killed goes on from there.
Params come in; who performs Tasks says where (`at`), a learner says what; what is kept stays with the data's owner."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from foedus.keys import Key
from foedus.params import Params, digest

FOLDER = "midway"
EVERY = 30.0  # seconds of training between two files; one that takes less keeps none
SHARE = 20  # writing may take a twentieth of the time since the last file

folder: Path | None = None  # of the Tasks that this process performs; None: nothing is kept


@contextmanager
def at(place: Path) -> Iterator[None]:
    """Inside the block trainings are kept in `place`, of which nothing stays when it ends well."""
    global folder  # noqa: PLW0603
    before, folder = folder, place
    try:
        yield
        clear(place)
    finally:
        folder = before


def clear(place: Path) -> None:
    """Lets go of what was kept: the trainings are counted, or not wanted any more."""
    shutil.rmtree(place, ignore_errors=True)


class Midway:
    """The file of one training, which its key and the model that it starts from name.

    A training asks `read` first, `due` after each step and `write` when it is; at its end once more, with `last`: the
    update may be nowhere but in a worker's memory until its round is over.
    """

    def __init__(self, key: Key, params: Params, examples: int) -> None:
        self.path = None if folder is None else folder / key.digest().hex()[:32]
        self.start = params, examples
        self.next, self.written = time.monotonic() + EVERY, False

    def read(self, load: Callable[[BinaryIO], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """What an earlier attempt at this training kept; None where there is nothing of use."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                if file.read(len(self._stamp)) != self._stamp:
                    return None
                found = load(file)
        except Exception:  # half a file, or of another version: it is begun again
            self.drop()
            return None
        self.written = True
        return found

    def due(self, last: bool = False) -> bool:
        """Whether it is time to write."""
        return self.path is not None and (self.written if last else time.monotonic() >= self.next)

    def write(self, save: Callable[[BinaryIO], object]) -> None:
        """Replaces the file. Where that cannot be done it warns, and nothing more of this training is kept."""
        assert self.path is not None
        began, new = time.monotonic(), self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(self._stamp)
                save(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except Exception as error:  # of the disk, or whatever pickling raises
            why = f"{type(error).__name__}: {error}"
            warnings.warn(f"{self.path}: the training goes on, but cannot be resumed midway ({why})", stacklevel=2)
            with suppress(OSError):
                new.unlink(missing_ok=True)
            self.path = None
            return
        now = time.monotonic()
        self.next, self.written = now + max(EVERY, SHARE * (now - began)), True

    def drop(self) -> None:
        """Forgets what is kept."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    @property
    def _stamp(self) -> bytes:
        """32 bytes that only a training with this start has."""
        params, examples = self.start
        return hashlib.sha256(f"1 {digest(params)} {examples}".encode()).digest()
