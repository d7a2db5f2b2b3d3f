"""A site of a federation: the agent holds the key and the policy, the worker alone runs a Job's code.
Wire and store come in; a Job is imported in `worker.py` and nowhere else."""
