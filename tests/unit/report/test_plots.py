"""Figures stay drawable when the figures they show are bad."""

import io

from accordion.report import plots
from accordion.report.summary import Pretrain


def test_losses_of_a_model_worse_than_the_baseline_stay_inside_the_figure():
    losses = dict.fromkeys(("text", "image", "video", "audio"), 4.0)
    pretrain = Pretrain(val_loss_full=losses, val_loss_unigram=dict.fromkeys(losses, 3.9), submodels=[])
    curves = {f"loss/{name}": [(1, 4.6), (2, 4.2)] for name in losses}
    picture = io.BytesIO()
    plots.losses(curves, pretrain).savefig(picture, dpi=50, bbox_inches="tight")
    assert 1_000 < picture.tell() < 200_000
