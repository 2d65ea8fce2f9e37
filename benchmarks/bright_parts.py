"""A network for benchmarks that finds what is bright: what it costs is what everything around a network costs."""

from __future__ import annotations


class BrightParts:
    """Finds every bright part of a channel, ``shift`` columns from where it is, with a square mask in its box.

    Args:
        channel: Of the images that it is shown.
        side: Of the masks, in pixels.
        shift: In columns of the image.
    """

    def __init__(self, channel: int, side: int, shift: int = 0) -> None:
        self.channel, self.side, self.shift = channel, side, shift

    def detect(self, images, *, maps=False):
        import torch
        import torch.nn.functional as F
        from scipy import ndimage

        from clearmargin.networks.network import Detections

        numbered, count = ndimage.label(images[0, self.channel].numpy() > 0.5)
        boxes, masks = [], []
        for k, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
            boxes.append([columns.start + self.shift, rows.start, columns.stop + self.shift, rows.stop])
            part = torch.from_numpy(numbered[rows, columns] == k).float()
            masks.append(F.interpolate(part[None, None], (self.side, self.side), mode="area")[0, 0])
        regions = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return [
            Detections(
                boxes=regions,
                labels=torch.ones(count, dtype=torch.int64),
                scores=torch.full((count,), 0.9),
                masks=torch.stack(masks) if masks else torch.zeros(0, self.side, self.side),
                regions=regions,
                foreground=0.9 * torch.from_numpy(numbered > 0).roll(self.shift, 1)[None].float()
                if maps
                else None,
            )
        ]


def bright_voxels(settings):
    """Return ``semantic_cc_3d`` of one class whose U-shaped network is a threshold at 0.35."""
    import torch

    from clearmargin.networks import build_network, network_config

    class Threshold(torch.nn.Module):
        def forward(self, images):
            return 40 * (images - 0.35)

    network = build_network(network_config(settings), classes=1, channels=1, pretrained=False)
    network.unet = Threshold()
    return network


def bright_windows(patch):
    """Return a network of windows that finds every bright part of one, as ``mask_rcnn_3d`` gives it."""
    import torch
    from scipy import ndimage

    from clearmargin.networks.network import Detections, WindowNetwork
    from clearmargin.transforms.settings import VolumeView

    class BrightWindows(WindowNetwork):
        parts = ()
        overlap = 0.25

        def __init__(self):
            super().__init__()
            self.view = VolumeView(patch=patch)

        def losses(self, images, targets):
            raise NotImplementedError("it learns nothing")

        def detect(self, images, *, maps=False):
            bright = (images[0, 0] > 0.35).numpy()
            numbered, _ = ndimage.label(bright)
            places = ndimage.find_objects(numbered)
            boxes = [[*(b.start for b in box[::-1]), *(b.stop for b in box[::-1])] for box in places]
            boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
            masks = tuple(torch.from_numpy(numbered[box] == k).float() for k, box in enumerate(places, 1))
            return [
                Detections(
                    boxes=boxes,
                    labels=torch.ones(len(places), dtype=torch.int64),
                    scores=torch.full((len(places),), 0.9),
                    masks=masks,
                    regions=boxes,
                    foreground=torch.from_numpy(bright)[None].float() if maps else None,
                )
            ]

    return BrightWindows()
