"""A network that needs no training: it sees the bright part of what it is shown, and nothing else."""

import torch

from clearmargin.core import Code, LabelClass, LabelMap, Provenance
from clearmargin.models.segmenter import PlaneSegmenter
from clearmargin.networks.network import Detections
from clearmargin.transforms.settings import ImageSettings, Window

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
CATEGORY = Code(value="49755003", scheme="SCT", meaning="Morphologically Altered Structure")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CATEGORY),))


class Bright:
    """Finds the box around what is brighter than half, as one instance."""

    def detect(self, images, *, maps=False):
        bright = images[0, 1] > 0.5
        foreground = 0.875 * bright[None].float() if maps else None
        if not bright.any():
            empty = torch.zeros(0, 4)
            return [
                Detections(
                    boxes=empty,
                    labels=torch.zeros(0, dtype=torch.int64),
                    scores=torch.zeros(0),
                    masks=torch.zeros(0, 28, 28),
                    regions=empty,
                    foreground=foreground,
                )
            ]
        rows, columns = torch.where(bright.any(1))[0], torch.where(bright.any(0))[0]
        box = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
        return [
            Detections(
                boxes=box,
                labels=torch.ones(1, dtype=torch.int64),
                scores=torch.tensor([0.875]),
                masks=torch.ones(1, 64, 64),
                regions=box,
                foreground=foreground,
            )
        ]


def bright_segmenter(low=0.0, high=1.0):
    return PlaneSegmenter(
        network=Bright(),
        image=ImageSettings(intensity=Window(low=low, high=high)),
        label_map=LABELS,
        provenance=Provenance(
            model="bright", weights_sha256="0" * 64, config_sha256="1" * 64, software="clearmargin test"
        ),
        device=torch.device("cpu"),
    )
