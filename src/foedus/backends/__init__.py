"""Who does the sites' work in a simulation on this machine or on a Ray cluster: each backend is a Crew.
The round loop and the contract may come in. A real federation is in server and site.

`local`: one site after another. `vectorized` and `together`: many at once in batched kernels. `processes` and `ray`:
workers that keep the model. `auto` chooses. `simulation` is what all of them stand in: the Tasks' opening and closing.
"""
