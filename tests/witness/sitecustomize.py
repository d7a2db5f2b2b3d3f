"""Notes what becomes durable, and what is done because of it, in one file for all processes of a federation.
Python imports this in every process in whose PYTHONPATH this folder is; only test_durable_order.py puts it there."""

import functools
import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

HERE = str(Path(__file__).parent)
FILE = os.environ.get("FOEDUS_WITNESS", "")
OUT = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if FILE else -1


def note(what, **facts):
    """One line, written at once: what one process did because of another comes after it."""
    os.write(OUT, (json.dumps({"what": what, "pid": os.getpid(), **facts}) + "\n").encode())


def around(owner, name, before=None, after=None):
    """Has a function of the real code noted, before it begins or after it returned."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def noted(*args, **more):
        told = before(*args, **more) if before else None
        found = real(*args, **more)
        if after:
            after(told, found, *args, **more)
        return found

    setattr(owner, name, noted)


def path_of(file):
    return os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")


def files():
    for name in ("fsync", "fdatasync"):
        around(os, name, path_of, lambda path, *_: note("fsync", path=path))
    for name in ("rename", "replace"):
        around(os, name, None, lambda _, __, a, b, **___: note("rename", path=str(b), source=str(a)))


def children():
    """The processes that a server and an agent start have an environment made anew."""

    def passed_on(_, *args, env=None, **more):
        if env is not None:
            env.update(FOEDUS_WITNESS=FILE, PYTHONPATH=os.pathsep.join((HERE, env["PYTHONPATH"])))

    around(subprocess.Popen, "__init__", passed_on)


def server():
    from foedus.server.run import Delivery
    from foedus.store.sql import SqlStore
    from foedus.wire.pipe import Pipe

    def rows(what, found):
        for kind, body in found:
            note(what, kind=kind, body=body)

    def receipt(delivery, name, value):
        if name == "receipt" and value is not None:
            note("receipt", status=value["status"], body=delivery.body)

    around(SqlStore, "append", lambda _, __, found, ___: rows("append", found),
           lambda _, __, store, ___, found, ____: store._here.connection or rows("committed", found))  # fmt: skip
    around(Delivery, "__setattr__", receipt)
    around(Pipe, "send", lambda _, message, *__: note("tell", keys=sorted(message)))
    around(Pipe, "receive", None, lambda _, found, __: note("hear", do=found[0].get("do")))


def run_worker():
    from foedus.aggregators import chunks

    around(chunks, "fold_files", lambda *args: note("fold", path=str(next(x for x in args if isinstance(x, Path)))))


def agent():
    from foedus.store.sqlite import SqliteStore
    from foedus.wire.http_client import Channel

    begun = defaultdict(list)  # thread -> what it has put into a transaction that is open

    def put(_, __, store, table, key, ___):
        begun[get_ident()].append((table, key))
        if not store._inside():
            committed()

    def committed():
        for table, key in begun.pop(get_ident(), ()):
            note("stored", table=table, key=key)

    transaction = SqliteStore.transaction

    @contextmanager
    def noted(store):
        with transaction(store):
            yield
        if not store._inside():
            committed()

    SqliteStore.transaction = noted
    around(SqliteStore, "put", lambda _, table, key, __: note("put", table=table, key=key), put)
    around(Channel, "upload", lambda _, __, path, *___: note("send", path=path))


if FILE:
    files()
    children()
    match sys.orig_argv[1:]:
        case ["-m", "foedus.server", *_]:
            server()
        case ["-m", "foedus.server.worker", *_]:
            run_worker()
        case ["-m", "foedus", "site", *_]:
            agent()
