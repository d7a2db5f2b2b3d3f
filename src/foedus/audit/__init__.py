"""Leakage audit: attacks on the very bytes that leave a site, with and without each defence, and a verdict in words.
Jobs come in; what simulated liars do to a federation lies in `attacks`."""

from foedus.audit.auditing import attack
from foedus.audit.findings import Audit, Finding

__all__ = ["Audit", "Finding", "attack"]
