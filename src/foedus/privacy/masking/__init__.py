"""Secure aggregation as plain functions over bytes and arrays, so that the server sees only the sum of updates.
Bonawitz et al. 2017 in its malicious-server variant; Bell et al. 2020 above 64 sites. Nothing here knows a network.

One Task, sites on the left (state durable before the message leaves), the server on the right:

    advertise → server.read_advert, server.keys → share → server.read_shares, server.deliveries
    → mask (of encode) → server.fold, server.survivors → agree → server.read_agreement, server.endorsement
    → reveal → server.read_reveal, server.unmask → decode
"""

from foedus.privacy.masking import server
from foedus.privacy.masking.rest import Own, kind, released, rest_key, settled
from foedus.privacy.masking.site import advertise, agree, mask, reveal, share
from foedus.privacy.masking.streams import stream
from foedus.privacy.masking.tables import Unsafe
from foedus.privacy.masking.terms import Terms, terms
from foedus.privacy.masking.words import decode, encode

__all__ = [
    "Own",
    "Terms",
    "Unsafe",
    "advertise",
    "agree",
    "decode",
    "encode",
    "kind",
    "mask",
    "released",
    "rest_key",
    "reveal",
    "server",
    "settled",
    "share",
    "stream",
    "terms",
]
