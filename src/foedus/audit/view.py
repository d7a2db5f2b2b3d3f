"""What somebody at the server sees of a site: its update, its masked words, or the sum of all; read as a gradient.
A watched run comes in; the masks are those of the protocol between real sites."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.aggregators.folding import bound
from foedus.audit.leaving import Left, Watched, held
from foedus.params import Array, Params, digest
from foedus.privacy import masking
from foedus.privacy.masking import figures, server
from foedus.privacy.secagg import masked

UPDATE, WORDS, SUM = "its update", "its masked words", "the sum of {} sites"


class View(NamedTuple):
    """`slope` is the mean gradient at `model` if one step was taken, else the mean over the steps; `sites`: whose."""

    on: str
    model: Params
    slope: Params
    steps: int
    sites: tuple[str, ...]
    words: Array | None = None


def views(run: Watched) -> list[View]:
    """What the server can see of the site's first update: the update, or under a seal its words and the sum."""
    left = run.updates[0]
    model = left.sent(run.names)
    if left.task.seal is None:
        read = left.read(run.names)
        assert read is not None
        return [View(UPDATE, model, slope(read, left), left.steps, (left.order.site,))]
    words, total = masked_words(run), run.total()
    assert total is not None
    on = WORDS if masked(left.task) else "its words, without masks"
    alone = View(on, model, slope(unmasked(run, words), left), left.steps, (left.order.site,), words)
    together = View(SUM.format(len(run.beside)), model, slope(total, left), left.steps, tuple(run.beside))
    return [alone, together]


def slope(read: Params, left: Left) -> Params:
    """-(what was read) over the sum of step sizes, in float64; by 1 where the training loop does not tell them."""
    path = left.path if np.isfinite(left.path) and left.path > 0 else 1.0
    return Params({name: -x.astype(np.float64) / path for name, x in read.items()})


def masked_words(run: Watched) -> Array:
    """The words of 32 bits that leave the site in its first sealed Task, its metrics among them, with new keys."""
    left = run.updates[0]
    task, rule = left.task, bound(left.task.aggregator, len(left.task.sites))
    layout = figures.merged(figures.announced(other.update.metrics) for other in run.beside.values())
    flats = left.update.params.flats
    words = masking.encode(
        rule, {leaf.group: flats[leaf.group] for leaf in left.update.params.spec}, left.update.weight
    )
    words = np.concatenate([words, figures.figures(left.update.metrics, layout)])
    return _masked(left, words) if masked(task) else words


def _masked(left: Left, words: Array) -> Array:
    """The words with the masks of one Task between all sites that were asked."""
    order, sites = left.order, list(left.task.sites)
    keys = {site: Ed25519PrivateKey.generate() for site in sites}
    publics = {site: key.public_key().public_bytes_raw() for site, key in keys.items()}
    own = {site: masking.Own(site, key, publics, masking.rest_key(key)) for site, key in keys.items()}
    model = digest(order.payload)
    given = masking.terms("audit", order.round, order.task, 0, sites, model, model, left.task.seal.threshold)
    states, adverts, shares = dict[str, bytes](), dict[str, bytes](), {}
    for site in sites:
        states[site], message = masking.advertise(own[site], given)
        adverts[site] = server.read_advert(given, publics, site, message)
    asked = server.keys(given, adverts)
    for site in sites:
        states[site], message = masking.share(own[site], given, states[site], asked)
        shares[site] = server.read_shares(given, adverts, site, message)
    letter = server.deliveries(given, shares)[order.site]
    masking.mask(own[order.site], given, states[order.site], letter, words)
    return words


def unmasked(run: Watched, words: Array) -> Params:
    """The words read as if no masks were on them: all that somebody without the keys can do."""
    left = run.updates[0]
    spec, rule = left.update.params.spec, bound(left.task.aggregator, len(left.task.sites))
    sizes: Mapping[str, tuple[str, int]] = {
        g: (str(x.dtype), x.size) for g, x in left.update.params.flats.items() if g in {leaf.group for leaf in spec}
    }
    length = sum(size for _, size in sizes.values()) + masking.words.LIMBS
    acc, weight = masking.decode(rule, sizes, words[:length])
    arrays = rule.finish(acc, weight or Fraction(1))
    found = held(Params.of(spec, arrays), run.names)
    assert found is not None
    return found


def uniform(words: Array) -> float:
    """The p-value of a chi-squared test that the bytes of these words are uniform: small for what is not masked."""
    from scipy.stats import chisquare

    return float(chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue)
