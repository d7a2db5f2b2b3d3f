"""The server of a federation: identity, blobs, journal, and a worker per run. It never imports a Job.
Wire and store may come in; a Job's code runs in `worker.py` alone, a process without keys, network or database."""
