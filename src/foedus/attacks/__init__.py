"""What lying sites do, to see what a defence is worth: each attack one file, put around the work of some sites.
The contract, aggregators and data may come in; an attacked algorithm runs wherever the algorithm does."""

from foedus.attacks.alie import alie
from foedus.attacks.attacked import Attack, Seen, attacked
from foedus.attacks.backdoor import backdoor
from foedus.attacks.gaussian import gaussian
from foedus.attacks.inner_product import inner_product
from foedus.attacks.label_flip import label_flip
from foedus.attacks.sign_flip import sign_flip

__all__ = [
    "Attack",
    "Seen",
    "alie",
    "attacked",
    "backdoor",
    "gaussian",
    "inner_product",
    "label_flip",
    "sign_flip",
]
