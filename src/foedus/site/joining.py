"""How a machine becomes a site: a token comes in, a folder with a key of its own and a register entry come out.
Identity, policy and bindings come in; the token is used up last, so that a mistake costs nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from foedus import home
from foedus.errors import Denied, FoedusError
from foedus.site import bindings, policy
from foedus.site.bindings import Binding
from foedus.site.place import Place
from foedus.wire.identity import NAME, enrol, read_token
from foedus.wire.link import publish
from foedus.wire.plain import plain


def enrol_site(
    text: str, data: Sequence[Binding], trust: Collection[str], given: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> Place:  # fmt: skip
    """The folder of the site that the token names, enrolled; doing it again after a failure goes on from there.

    Raises FoedusError or Denied with the remedy.
    """
    token = read_token(text)
    invitation = token.invitation
    if invitation.role != "site":
        raise Denied(f"the token of {invitation.name!r} is for a submitter: use it with `foedus login`")
    if name not in (None, invitation.name):
        raise FoedusError(f"the token is for the site {invitation.name!r}, not for {name!r}: leave --name out")
    if odd := [who for who in trust if not NAME.fullmatch(who)]:
        raise FoedusError(f"--trust {odd[0]!r}: this is no name of a submitter")
    checked = [bindings.check(binding) for binding in data]
    place = Place.make(home.folder(given) / "sites" / invitation.name, token.federation)
    policy.write(place.folder / "policy.toml", trust)
    policy.load(place.folder / "policy.toml")
    for binding in checked:
        bindings.add(place.store, binding)
    publish(token.federation, "/v1/enrol", {"entry": plain(enrol(token, place.key()))})
    return place
