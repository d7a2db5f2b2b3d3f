"""A learner of JAX and Flax models with optax; each step is compiled once for its shapes.
The public name is JaxLearner; jax and optax come in here and are an extra."""

from __future__ import annotations

from foedus.errors import explained

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ModuleNotFoundError as error:
    raise explained(error) from error

from foedus.jax.learner import JaxLearner

__all__ = ["JaxLearner"]
