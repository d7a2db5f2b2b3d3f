"""Many sites in threads of one process, each with a key and a connection of its own, over the protocol itself.
They train nothing: what a site got is what it sends back."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from foedus.errors import FoedusError
from foedus.server.owner import invitations
from foedus.site.orders import Activity, Order, read_order
from foedus.site.transfer import fetch, upload
from foedus.wire.ed25519 import new_key
from foedus.wire.freshness import Life
from foedus.wire.identity import enrol, read_token
from foedus.wire.link import Link, Member, publish
from foedus.wire.plain import plain
from foedus.wire.signing import sign_envelope


class Swarm:
    """`got` is (round, site) -> when the site held the Task; nobody begins to work on one before `gate` is set."""

    def __init__(self, home: Path, folder: Path, count: int) -> None:
        self.folder, self.got = folder, dict[tuple[int, str], float]()
        self.gate, self.over = threading.Event(), threading.Event()
        tokens = invitations(home, [f"s{i}" for i in range(count)])
        self.threads = [threading.Thread(target=self._site, args=item, daemon=True) for item in tokens.items()]
        self.here = threading.Barrier(count + 1)
        for thread in self.threads:
            thread.start()
        self.here.wait(60)

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(5)

    def _site(self, name: str, token: str) -> None:
        found, key = read_token(token), new_key()
        publish(found.federation, "/v1/enrol", {"entry": plain(enrol(found, key))})
        with closing(Link(Member(found.federation, name, key, 1))) as link, suppress(FoedusError):
            link.call("POST", "/v1/hello", {"life": plain(Life(1, secrets.token_hex(16), ""))})
            link.nonce = ""
            self.here.wait(60)
            self._work(link, set())

    def _work(self, link: Link, prepared: set[str]) -> None:
        federation = link.member.federation
        while not self.over.is_set():
            told = link.call("POST", "/v1/poll", {"prepared": sorted(prepared), "wait": 2.0})
            for offer in told["prepare"]:
                run = offer["body"]["run"]
                link.call("POST", "/v1/ready", {"run": run, "ready": True, "why": "", "report": {}})
                prepared.add(run)
            for envelope in told["tasks"]:
                order = read_order(envelope, federation.server, link.member.name)
                self.got[order.at.round, link.member.name] = time.time()
                self.gate.wait()
                self._do(link, order)

    def _do(self, link: Link, order: Order) -> None:
        activity, path = Activity(order.at), self.folder / link.member.name / "model"
        fetch(link, order.at.run, order.payload, path, activity, activity.gone)
        upload(link, order.at, path, order.payload, activity, fresh=True)
        about: dict[str, Any] = {"weight": (3.0).hex(), "metrics": {}, "stateful": False, "build": ""}
        body = order.at._asdict() | order.payload._asdict() | about | {"site": link.member.name}
        envelope = sign_envelope(link.member.key, "foedus/update/1", body)
        link.call("POST", "/v1/updates", {"envelope": envelope}, timeout=180.0)
