"""What a training step costs beside a bare loop on the same network and batch: ``make bench-step``.

Both have AdamW and the same losses; ours also cuts the gradient, moves the weights' average, checks that the loss is
finite and sums the losses for the curves. Pairs are interleaved, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from clearmargin.networks import NETWORKS, build_network, network_config
from clearmargin.networks.network import Targets
from clearmargin.training.checkpoint import TrainingState
from clearmargin.training.processes import ProcessGroup, loss_module
from clearmargin.training.step import TrainingStep


def make_batch(size: int, images: int) -> tuple[torch.Tensor, list[Targets]]:
    """Discs on noise, twelve an image."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels, targets = [], []
    for _ in range(images):
        centres = torch.rand((12, 2), generator=generator) * size
        radii = 6 + 20 * torch.rand(12, generator=generator)
        masks = torch.stack(
            [(y - c[0]) ** 2 + (x - c[1]) ** 2 < r**2 for c, r in zip(centres, radii, strict=True)]
        )
        pixels.append(
            (0.3 * torch.rand((3, size, size), generator=generator) + 0.6 * masks.any(0)).clamp(0, 1)
        )
        targets.append(Targets.from_masks(masks.to(torch.uint8), torch.ones(12, dtype=torch.int64)))
    return torch.stack(pixels), targets


def build(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = build_network(network_config({"network": name}), classes=1, pretrained=True)
    if not isinstance(network, nn.Module):
        raise TypeError(name)
    network = network.to(memory_format=torch.channels_last)
    return network, torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)


def bare(name: str, batch: tuple[torch.Tensor, list[Targets]]) -> Callable[[int], None]:
    network, optimiser = build(name)
    images = batch[0].to(memory_format=torch.channels_last)

    def step(number: int) -> None:
        torch.manual_seed(number)
        losses = network.losses(images, batch[1])  # type: ignore[operator]
        loss = sum(losses.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def ours(name: str, batch: tuple[torch.Tensor, list[Targets]]) -> Callable[[int], None]:
    network, optimiser = build(name)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    take = TrainingStep(
        state=TrainingState(network=network, average=average, optimiser=optimiser),
        compute_losses=loss_module(network, torch.device("cpu"), ProcessGroup()),
        device=torch.device("cpu"),
        clip_norm=5.0,
        ema=0.998,
    )

    def step(number: int) -> None:
        torch.manual_seed(number)
        for value in take([batch], number=number, rate=1e-4).values():
            float(value)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["mask_rcnn"], choices=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args()
    batch = make_batch(options.size, options.images)
    print(f"{torch.get_num_threads()} threads, {options.images} images of {options.size} pixels")
    for name in options.networks:
        steps = (ours(name, batch), bare(name, batch))
        for step in steps:
            for number in range(3):
                step(number)
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(options.pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                steps[which](number)
                seconds[which].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(*seconds, strict=True)]
        print(
            f"{name:<12} ours {statistics.median(seconds[0]):.3f} s, bare {statistics.median(seconds[1]):.3f} s, "
            f"ratio {statistics.median(ratios):.3f} (median of {options.pairs} pairs)"
        )


if __name__ == "__main__":
    main()
