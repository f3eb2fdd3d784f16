"""Kinetics pre-training of a backbone: average pool and a linear classifier, as mmengine's Runner trains it.

    model = dict(type="STPTClassifier", data_preprocessor=dict(type="ClipPreprocessor"), backbone=dict(name="stpt"))

A detector starts from the result with `model.pretrained=runs/stpt/NAME`. The recipe is open: nobody published STPT's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope
from stpt.models.conversion import load_backbone
from stpt.models.networks import create_backbone


@own_scope("stpt").MODELS.register_module()
class STPTClassifier(BaseModel):
    """Class scores of whole clips; the samples have `gt_label` and get `pred_score`, as mmaction's `AccMetric` asks.

    Args:
        backbone: `name` of `stpt.models.networks.BACKBONES`, and changes of it.
        num_classes: C.
        label_smoothing: share of the target that is spread over all classes.
        pretrained: weights that the backbone starts from: a 2D network's or MViT's file.
        inflation: of a 2D network's convolutions, `mean` or `center`.
        data_preprocessor: `ClipPreprocessor`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int = 400,
        label_smoothing: float = 0.1,
        pretrained: str | None = None,
        inflation: str = "mean",
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=dict(data_preprocessor or dict(type="stpt.ClipPreprocessor")))
        self.backbone = create_backbone(**backbone)
        self.head = nn.Linear(self.backbone.out_channels[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        if pretrained:
            load_backbone(self.backbone, pretrained, inflation)

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = "tensor") -> Any:
        """(B, 3, T, H, W) in [-1, 1] -> the loss; samples with `pred_score` (C); or logits (B, C).

        Raises:
            UserError: a label that is no class.
        """
        logits = self.head(self.backbone(inputs)[-1].mean(dim=(2, 3, 4)))
        if mode == "tensor" or data_samples is None:
            return logits
        if mode == "predict":
            for sample, scores in zip(data_samples, logits.float().softmax(1), strict=True):
                sample.set_field(scores, "pred_score")
            return data_samples
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if int(labels.min()) < 0 or int(labels.max()) >= self.head.out_features:
            last = self.head.out_features - 1
            raise UserError(f"a clip has the label {int(labels.max())}; the classes of the network are 0 to {last}")
        return {"loss": self.loss(logits.float(), labels)}
