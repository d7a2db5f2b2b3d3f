"""A site of nvflare_run.py: receives a model, trains it, sends it back. The first site tells the rounds."""

import os

import nvflare.client as flare
import torch
from problem import Told, network, read, trained

PROBLEM, TOLD = read(os.environ["PROBLEM"]), Told(os.environ["TOLD"])


def main():
    torch.set_num_threads(1)
    flare.init()
    number = int(flare.get_site_name().removeprefix("site-")) - 1
    x, y = (torch.from_numpy(part) for part in PROBLEM.sites[number])
    model = network(PROBLEM.model)
    while flare.is_running():
        received = flare.receive()
        if number == 0:
            if received.current_round:
                TOLD.round()  # the one before is over, for its mean is here
            TOLD.model({name: torch.as_tensor(value).numpy() for name, value in received.params.items()})
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        trained(model, x, y)
        flare.send(flare.FLModel(params=model.state_dict(), meta={"NUM_STEPS_CURRENT_ROUND": len(x)}))


if __name__ == "__main__":
    main()
