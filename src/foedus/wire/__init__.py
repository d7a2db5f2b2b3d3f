"""What travels between server, sites and submitters: HTTP, identity, signatures, bundles, pipes.
The saved form and the errors may come in; nothing here knows of runs."""
