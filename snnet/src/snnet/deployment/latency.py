"""Milliseconds per image of every configuration on this machine, which multiply-adds alone do not tell."""

from collections.abc import Iterable, Sequence

import torch
from torch.utils.benchmark import Timer

from snnet.method.stitching import StitchedNetwork


def measure_latencies(
    network: StitchedNetwork,
    input_size: Sequence[int],
    config_ids: Iterable[int],
    seconds: float = 0.5,
) -> dict[int, float]:
    """Median time of a batch of one image, in milliseconds, with the present number of threads.

    Args:
        input_size: (channels, H, W).
        seconds: how long each configuration is run (after one run to warm up).
    """
    device = next(network.parameters()).device
    image = torch.randn(1, *input_size, device=device)
    network.eval()
    found = {}
    with torch.inference_mode():
        for config_id in config_ids:
            network(image, config_id)
            timer = Timer(
                "network(image, config_id)", globals={"network": network, "image": image, "config_id": config_id}
            )
            found[config_id] = 1000 * timer.blocked_autorange(min_run_time=seconds).median
    return found
