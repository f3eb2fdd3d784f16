"""Pipelines: guidance, batches, folders; the mapping to whole numbers, once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from made import PIXELS, pixel_folder, tiny_unet

from paperkit.errors import UserError
from ptq4dm.models.latent_diffusion import ClassEmbedding, FirstStageOptions, build_first_stage
from ptq4dm.models.pipelines import (
    ClassConditionalLDMPipeline,
    UnconditionalLDMPipeline,
    draw,
    load_pipeline,
    quiet_diffusers,
    to_uint8,
)

SCHEDULER = DDIMScheduler(
    1000, 0.0015, 0.0195, "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
)


def conditional(seed: int = 0) -> ClassConditionalLDMPipeline:
    unet = tiny_unet(conditional=True, seed=seed)
    first_stage = build_first_stage(FirstStageOptions("vq", (1, 2), 3, 16, 8, 1, 16, 4)).eval()
    pipeline = ClassConditionalLDMPipeline(unet, first_stage, ClassEmbedding(5, 12).eval(), SCHEDULER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_guidance_is_applied_before_the_scheduler() -> None:
    """Written out: the unconditional prediction, and the conditional one, joined by hand."""
    pipeline = conditional()
    start = torch.randn(2, 3, 8, 8)
    found = pipeline([1, 3], 2.5, 4, 0.0, latents=start, output_type="latent", return_dict=False)[0]
    SCHEDULER.set_timesteps(4)
    x = start
    with torch.no_grad():
        for t in SCHEDULER.timesteps:
            embedding = pipeline.class_embedding.embedding.weight
            without = pipeline.unet(x, t, embedding[4].expand(2, 1, -1)).sample
            conditional_ = pipeline.unet(x, t, embedding[[1, 3]][:, None]).sample
            x = SCHEDULER.step(without + 2.5 * (conditional_ - without), t, x, eta=0.0).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_guidance_of_one_needs_no_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, sizes = conditional(), []
    pipeline.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    pipeline([0], 1.0, 2)
    pipeline([0], 3.0, 2)
    assert sizes == [1, 1, 2, 2]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_its_batch(eta: float) -> None:
    pipeline = conditional()
    whole = draw(pipeline, 0, [0, 1, 2], 7, 4, eta, 2.0)
    alone = draw(pipeline, 2, [2], 7, 4, eta, 2.0)
    torch.testing.assert_close(whole[2:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[0], draw(pipeline, 0, [0], 8, 4, eta, 2.0)[0], atol=1e-3)


def test_a_folder_gives_the_same_images(tmp_path: Path) -> None:
    """By our reader, and by diffusers' own `from_pretrained`."""
    pipeline = conditional()
    with quiet_diffusers():
        pipeline.save_pretrained(tmp_path)
        theirs = ClassConditionalLDMPipeline.from_pretrained(tmp_path)
    wanted = draw(pipeline, 0, [1], 0, 3, 1.0, 3.0)
    assert torch.equal(draw(load_pipeline(tmp_path), 0, [1], 0, 3, 1.0, 3.0), wanted)
    theirs.set_progress_bar_config(disable=True)
    assert torch.equal(draw(theirs, 0, [1], 0, 3, 1.0, 3.0), wanted)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_pixel_pipelines_of_diffusers(kind: Any, tmp_path: Path) -> None:
    """The same images as diffusers' own sampling with DDIM."""
    scheduler = DDPMScheduler() if kind is DDPMPipeline else DDIMScheduler()
    pipeline = kind(unet=tiny_unet(), scheduler=scheduler)
    with quiet_diffusers():
        pipeline.save_pretrained(tmp_path)
    ours = load_pipeline(tmp_path)
    assert isinstance(ours, UnconditionalLDMPipeline) and ours.vae is None
    ours.set_progress_bar_config(disable=True)
    theirs = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(scheduler.config))
    theirs.set_progress_bar_config(disable=True)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    wanted = theirs(2, generator(), eta=0.5, num_inference_steps=4, output_type="np").images
    found = ours(2, 4, 0.5, generator(), output_type="np").images
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(wanted), rtol=0, atol=1e-5)


def test_pixels_are_mapped_once() -> None:
    """-1, 0 and 1 are 0, 128 (127.5 rounds to even) and 255; mapped twice, the darkest would be 127."""
    images = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    assert to_uint8(images, "truncate")[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    pipeline = conditional()
    image = pipeline([1], 1.0, 2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (16, 16)


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("text_encoder", Path.mkdir, "another pipeline: it has text_encoder"),
        ("unet/config.json", lambda path: write(path, '{"_class_name": "os"}'), "holds a os"),
        ("unet/config.json", Path.unlink, "no config at"),
        ("scheduler/scheduler_config.json", lambda path: write(path, '{"_class_name": "Path"}'), "'Path'"),
        ("unet/diffusion_pytorch_model.safetensors", lambda path: truncate(path), "cannot be read as a UNet2DModel"),
    ],
    ids=["further part", "foreign network", "no config", "foreign scheduler", "truncated weights"],
)
def test_folders_that_cannot_be_read(file: str, spoil: Any, message: str, tmp_path: Path) -> None:
    folder = pixel_folder(tmp_path / "pipeline")
    spoil(folder / file)
    with pytest.raises(UserError, match=message):
        load_pipeline(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """diffusers fills them with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    folder = pixel_folder(tmp_path / "pipeline")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_out.bias"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit its config\.json: conv_out\.bias"):
        load_pipeline(folder)


def test_wrong_calls() -> None:
    with pytest.raises(UserError, match="class 5 is outside 0 to 4"):
        conditional()([5])
    with pytest.raises(UserError, match="latents of shape"):
        conditional()([1], latents=torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="output_type 'jpg'"):
        conditional()([1], num_inference_steps=1, output_type="jpg")


def test_samples_that_are_not_square() -> None:
    """diffusers takes a height and a width for `sample_size`."""
    unet = UNet2DModel(**{**PIXELS, "sample_size": (4, 8)})
    pipeline = UnconditionalLDMPipeline(unet, None, SCHEDULER)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(2, num_inference_steps=1, output_type="pt", return_dict=False)[0].shape == (2, 3, 4, 8)
