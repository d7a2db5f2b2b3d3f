"""A federation whose sites are federations."""

from pathlib import Path

import foedus as fd

edge = fd.edge(Path(__file__).with_name("below.py"), rounds=2)
job = fd.Job(fd.fedavg(), edge, edge.load, rounds=2, privacy="none")
