"""How far apart an attack ends that begins at different points: local and angular dispersion (arXiv 2311.16526).

Q is PGD of k steps as a map of its start. Of P independent pairs of starts rho, rho' of an image x [D], uniform in the
ball, delta = Q(x + rho) - x and delta' = Q(x + rho') - x:

    local dispersion     mean over pairs of |delta - delta'|, l2, and also linf
    angular dispersion   seen in the mean over pairs of cos(delta, delta'), which falls as directions spread
    size                 mean over all 2 P of |delta|_2
    shift                |mean over all 2 P of delta|_2, what the perturbations of an image have in common
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from advfast.attacks import PGDAttack

MEASURES = ("dispersion", "dispersion_linf", "cosine", "size", "shift")


def dispersion(
    attack: PGDAttack, images: Tensor, labels: Tensor, pairs: int, numbers: Tensor
) -> dict[str, Tensor]:
    """The five measures of each image, [B] float32; all 2 P runs of all images are one batch.

    Args:
        attack: with a seed: the starts depend on it and on `numbers` alone.
        images, labels: [B, ...] and [B].
        pairs: P.
        numbers: [B] int64, of the samples in their data set.
    """
    runs = 2 * pairs
    repeated = images.repeat_interleave(runs, 0)
    keys = (numbers[:, None] * runs + torch.arange(runs, device=numbers.device)).flatten()
    ends = attack(repeated, labels.repeat_interleave(runs), sample_ids=keys)
    delta = (ends - repeated).reshape(len(images), pairs, 2, -1)
    a, b = delta.unbind(2)  # [B, P, D]
    return {
        "dispersion": (a - b).norm(dim=2).mean(1),
        "dispersion_linf": (a - b).abs().amax(2).mean(1),
        "cosine": cosine_similarity(a, b, dim=2).mean(1),
        "size": delta.norm(dim=3).mean((1, 2)),
        "shift": delta.mean((1, 2)).norm(dim=1),
    }
