"""The heart Job, which a test puts beside this file as heart.py, with sites that wait."""

from heart import job as heart
from waits import waiting


def job(rounds=20, order=0, most=0.0):
    return waiting(heart(rounds=rounds), order, most)
