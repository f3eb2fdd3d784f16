"""``save_pretrained`` and ``from_pretrained`` on a folder: config.json, model.safetensors and a model card."""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import nn

from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_weights, save_weights

WEIGHTS = "model.safetensors"
CARD = """---
{{ card_data }}
---

# LITv2

Fast pyramid vision transformer with HiLo attention (arXiv 2205.13213), an image classifier or the backbone of a
detector or segmentation network; any image size from 32 px on.

Load it with `litv2.LITv2.from_pretrained(FOLDER)`, a backbone with `litv2.LITv2Backbone.from_pretrained(FOLDER)`.
What it was trained on, how well it does and where it fails are facts of the training run that wrote these weights: they
stand in that run's `metrics.json`, not here.
"""


class SavedInFolder(PyTorchModelHubMixin, library_name="litv2", license="apache-2.0", model_card_template=CARD):
    """huggingface_hub's mixin with strict loading, whole-or-nothing writing and errors of one line."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        save_weights(save_directory / WEIGHTS, self.state_dict(), {"format": "pt"})

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Any:
        if Path(model_id).is_dir():
            file = Path(model_id) / WEIGHTS
            if not file.is_file():
                raise UserError(f"{model_id} has no {WEIGHTS}; a folder written by save_pretrained does")
        else:
            try:
                options = dict(revision=revision, cache_dir=cache_dir, force_download=force_download, token=token)
                file = Path(hf_hub_download(model_id, WEIGHTS, local_files_only=local_files_only, **options))  # type: ignore[arg-type]
            except Exception as error:
                raise UserError(f"{model_id} is no folder here, and the hub gave no {WEIGHTS}: {error}") from error
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        load_strict(model, read_weights(file), str(file))
        return model.eval()
