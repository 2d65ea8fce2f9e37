"""Region proposals (Ren et al., NeurIPS 2015): torchvision's, with a box made only of an anchor that may become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

__all__ = ["ProposalNetwork"]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's network, its weights and its proposals, in less time.

    Of the many anchors, each level's most likely ones are chosen first; boxes are made of these alone. Losses look
    at all of them.
    """

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return each image's proposals, ``(R_i, 4)``, best first, and with ``targets`` the two losses."""
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        boxes, logits, counts = self._likeliest(images, objectness, deltas)
        proposals, _ = self.filter_proposals(boxes, logits, images.image_sizes, counts)
        if targets is None:
            return proposals, {}
        anchors = self.anchor_generator(images, maps)
        every, changes = concat_box_prediction_layers(objectness, deltas)
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        losses = self.compute_loss(every, changes, labels, self.box_coder.encode(matched, anchors))
        return proposals, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses, strict=True))

    def _likeliest(
        self, images: ImageList, objectness: Sequence[Tensor], deltas: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Return boxes ``(B, N, 4)`` of each level's most likely anchors, their logits ``(B, N)``, N of each level."""
        logits, offsets, anchors = [], [], []
        shapes = self.anchor_generator.cell_anchors
        for shape, level, changes in zip(shapes, objectness, deltas, strict=True):
            count, ratios, height, width = level.shape
            # in torchvision's order, so that of equal logits the same are taken
            flat = level.detach().permute(0, 2, 3, 1).flatten(1)
            best, index = flat.topk(min(self.pre_nms_top_n(), flat.shape[1]), dim=1)
            cell = index // ratios
            ratio, y = index - cell * ratios, cell // width
            x = cell - y * width
            image = torch.arange(count, device=level.device)[:, None]
            logits.append(best)
            offsets.append(torch.unflatten(changes.detach(), 1, (ratios, 4))[image, ratio, :, y, x])
            strides = (images.tensors.shape[-2] // height, images.tensors.shape[-1] // width)
            corner = torch.stack([x * strides[1], y * strides[0]] * 2, dim=2)
            anchors.append(corner + shape.to(level.device)[ratio])
        moves = torch.cat(offsets, 1).flatten(0, 1)
        # in 16 bits, as automatic precision computes them, boxes would be rounded to as much as 4 pixels
        moves = moves.to(torch.promote_types(moves.dtype, torch.float32))
        boxes = self.box_coder.decode_single(moves, torch.cat(anchors, 1).flatten(0, 1))
        best = torch.cat(logits, 1).to(moves.dtype)
        return boxes.view(len(images.tensors), -1, 4), best, [one.shape[1] for one in logits]
