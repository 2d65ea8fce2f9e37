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
