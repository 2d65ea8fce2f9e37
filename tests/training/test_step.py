"""A step: its gradient is the mean of its batches', over processes too, and a bad loss changes nothing."""

import os
import subprocess
import sys

import pytest
import torch
from small import SMALL, scene

from clearmargin.errors import TrainingError
from clearmargin.models.clock import Clock
from clearmargin.networks import build_network, network_config
from clearmargin.networks.foreground import RATE
from clearmargin.train import _parameter_groups
from clearmargin.training.checkpoint import TrainingState
from clearmargin.training.processes import ProcessGroup, loss_module
from clearmargin.training.step import TrainingStep


class Slope(torch.nn.Module):
    """One weight; the loss is its product with the images' mean."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def losses(self, images, targets):
        return {"slope": self.weight * images.mean()}


def make_step(network, **options):
    state = TrainingState(
        network=network,
        average={k: v.detach().clone() for k, v in network.state_dict().items()},
        optimiser=torch.optim.SGD(network.parameters(), lr=0.0),
    )
    device = torch.device("cpu")
    settings = {"clip_norm": 100.0, "ema": 0.5} | options
    return TrainingStep(
        state=state, compute_losses=loss_module(network, device, ProcessGroup()), device=device, **settings
    )


def flat(value):
    return torch.full((1, 3, 4, 4), float(value)), []


def test_a_step_goes_down_the_mean_gradient_of_its_batches():
    network = Slope()
    losses = make_step(network)([flat(1), flat(2), flat(6)], number=0, rate=0.1)
    assert network.weight.item() == pytest.approx(1 - 0.1 * 3)
    assert losses["loss"].item() == losses["slope"].item() == pytest.approx(3)


def test_a_group_may_learn_at_a_multiple_of_the_rate():
    network = Slope()
    step = make_step(network)
    step.state.optimiser.param_groups[0]["rate"] = 3.0
    step([flat(1)], number=0, rate=0.1)
    assert network.weight.item() == pytest.approx(1 - 3 * 0.1)


def test_a_head_for_maps_has_its_own_rate_and_everything_is_learnt_once():
    config = network_config(SMALL["mask_rcnn"].model)
    network = build_network(config, classes=2, channels=3, pretrained=False)
    groups = _parameter_groups(network, 0.05)
    at_rate = {
        rate: {id(p) for g in groups if g["rate"] == rate for p in g["params"]} for rate in (1.0, RATE)
    }
    assert at_rate[RATE] == {id(p) for p in network.foreground.parameters()}
    every = [id(p) for g in groups for p in g["params"]]
    assert sorted(every) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim <= 1)


def test_a_gradient_is_cut_to_its_largest_norm():
    network = Slope()
    make_step(network, clip_norm=0.5)([flat(7)], number=0, rate=0.1)
    assert network.weight.item() == pytest.approx(1 - 0.1 * 0.5, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights(bad):
    network = Slope()
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in step 4 \(slope (nan|inf)\)"):
        make_step(network)([flat(1), flat(bad)], number=3, rate=0.1)
    assert network.weight.item() == 1


def test_the_clock_counts_by_name(monkeypatch):
    ticks = iter([0.0, 1.0, 1.0, 4.0, 4.0, 5.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = Clock()
    for name in ("data", "forward", "data"):
        with clock(name):
            pass
    assert clock.seconds == {"data": 2.0, "forward": 3.0}
    assert clock.shares() == {"data": 0.4, "forward": 0.6}
    assert Clock().shares() == {}


TWO = """
import sys
import torch
from small import SMALL, scene
from clearmargin.networks import build_network, network_config
from clearmargin.training.processes import loss_module, process_group

with process_group() as group:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(network_config(SMALL["mask_rcnn"].model), classes=1, pretrained=True)
    image, targets = scene()
    losses = loss_module(network, torch.device("cpu"), group)
    torch.manual_seed(group.rank)
    batch = image[None].roll(16 * group.rank, -1)
    targets = type(targets).from_masks(targets.masks.roll(16 * group.rank, -1), targets.labels)
    torch.stack(list(losses(batch, [targets]).values())).sum().backward()
    if group.rank == 0:
        torch.save({k: p.grad for k, p in network.named_parameters() if p.grad is not None}, sys.argv[1])
"""


def test_two_processes_learn_from_the_mean_of_their_shards_gradients(tmp_path):
    """By torchrun and gloo: to 1e-5 of the two gradients computed alone, one after the other."""
    (tmp_path / "two.py").write_text(TWO)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = [str(p) for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "two.py"), str(tmp_path / "gradients.pt")],
        env={**os.environ, "PYTHONPATH": ":".join(path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    together = torch.load(tmp_path / "gradients.pt", weights_only=True)
    alone = {}
    for rank in (0, 1):
        torch.manual_seed(0)
        network = build_network(network_config(SMALL["mask_rcnn"].model), classes=1, pretrained=True)
        image, targets = scene()
        torch.manual_seed(rank)
        shifted = type(targets).from_masks(targets.masks.roll(16 * rank, -1), targets.labels)
        sum(network.losses(image[None].roll(16 * rank, -1), [shifted]).values()).backward()
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                alone[name] = alone.get(name, 0) + parameter.grad / 2
    assert together.keys() == alone.keys()
    assert max(float((together[k] - alone[k]).abs().max()) for k in alone) <= 1e-5
    assert max(float(g.abs().max()) for g in alone.values()) > 1e-2
