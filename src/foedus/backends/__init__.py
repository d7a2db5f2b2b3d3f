"""Where Tasks are carried to sites: `local` and `processes` simulate on this machine, `network` is a real federation.
The round loop and the contract may come in; each backend is one file."""
