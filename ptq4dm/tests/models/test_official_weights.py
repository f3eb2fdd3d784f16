"""CompVis checkpoints: both ways, averaged weights, training's own objects, and files that cannot be."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from made import ptq4dm
from made_checkpoints import TINY, made_file, made_state

from paperkit.errors import UserError
from ptq4dm.models.compvis import read_compvis, read_configuration, unet_names
from ptq4dm.models.conversion import to_file, to_folder
from ptq4dm.models.latent_diffusion import MODELS
from ptq4dm.models.pipelines import load_pipeline


@pytest.mark.parametrize("name", TINY)
def test_there_and_back_is_the_same_file(name: str, tmp_path: Path) -> None:
    file = made_file(tmp_path / "model.ckpt", name)
    told = to_folder(file, tmp_path / "folder", TINY[name])
    assert ("averaged" if TINY[name].use_ema else "plain") in told
    to_file(tmp_path / "folder", tmp_path / "again.ckpt")
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]
    state = made_state(name)
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("weights", ["ema", "plain"])
def test_the_chosen_weights_are_sampled(weights: Any, tmp_path: Path) -> None:
    networks, _ = read_compvis(made_file(tmp_path / "model.ckpt", "beds"), TINY["beds"], weights)
    state = made_state("beds")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wanted = state[key] * (0.5 if weights == "ema" else 1)
    assert torch.equal(networks.unet.conv_in.weight, wanted)
    other = "model.diffusion_model.out.2.bias" if weights == "ema" else "model_ema.diffusion_modelout2bias"
    assert other in networks.rest


def test_the_scale_of_latents_comes_from_the_file(tmp_path: Path) -> None:
    to_folder(made_file(tmp_path / "model.ckpt", "churches"), tmp_path / "folder", TINY["churches"])
    pipeline = load_pipeline(tmp_path / "folder")
    assert pipeline.vae is not None and pipeline.vae.config.scaling_factor == pytest.approx(0.22765)


def test_qkv_is_split_head_by_head() -> None:
    """With two heads, the second block of C/2 rows is the first head's k, not q's second half."""
    names = unet_names(read_net("churches"))
    assert names["middle_block.1.qkv.weight"] == tuple(f"mid_block.attentions.0.to_{part}.weight" for part in "qkv")
    state = made_state("churches")
    qkv = state["model_ema.diffusion_modelmiddle_block1qkvweight"]
    unet = read_net("churches", state)
    half = qkv.shape[0] // 6
    assert torch.equal(unet.get_parameter("mid_block.attentions.0.to_k.weight")[:half], qkv[half : 2 * half, :, 0])


def read_net(name: str, state: dict[str, torch.Tensor] | None = None) -> Any:
    from ptq4dm.models.compvis import load_official
    from ptq4dm.models.latent_diffusion import build_unet

    unet = build_unet(TINY[name].unet)
    if state is not None:
        names = unet_names(unet)
        keys = {name: "model_ema." + ("diffusion_model." + name).replace(".", "") for name in names}
        load_official(unet, {name: state[key] for name, key in keys.items()}, names, "made")
    return unet


def test_objects_of_lightning_are_left_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Released files hold a callback's class and options of OmegaConf; neither is imported to read the weights."""
    module = types.ModuleType("pytorch_lightning.callbacks.made")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        made_file(tmp_path / "model.ckpt", "cin", callbacks={kind: {"best": kind()}})
    networks, _ = read_compvis(tmp_path / "model.ckpt", TINY["cin"])
    assert networks.embedding is not None and networks.embedding.null_class == 4


class Evil:
    """What a pickle can be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('ran', 'w')",))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = made_file(tmp_path / "model.ckpt", "cin", hook=Evil())
    line = ptq4dm.refused("convert", str(file), str(tmp_path / "folder"), cwd=tmp_path)
    assert "wants eval" in line and "--trust-pickle" in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("cin", "cond_stage_model.embedding.weight", None, "lacks the class embedding"),
        ("cin", "model.diffusion_model.out.2.bias", None, "missing out.2.bias"),
        ("cin", "model.diffusion_model.out.2.bias", torch.zeros(7), "7"),
        ("cin", "model.diffusion_model.out.9.bias", torch.zeros(7), "out.9.bias"),
        ("beds", "model_ema.diffusion_modelout9bias", torch.zeros(7), "out9bias"),
        ("beds", "first_stage_model.encoder.down.0.attn.0.q.weight", torch.zeros(7), "down.0.attn.0.q.weight"),
        ("beds", "model_ema.diffusion_modelmiddle_block1qkvweight", torch.zeros(5, 5, 1), "5x5"),
        ("churches", "first_stage_model.decoder.mid.attn_1.q.weight", None, "decoder.mid.attn_1.q.weight"),
        ("beds", "model_ema.diffusion_modelout2bias", torch.full((3,), torch.nan), "no numbers"),
    ],
)
def test_files_that_do_not_fit(name: str, key: str, change: torch.Tensor | None, message: str, tmp_path: Path) -> None:
    state = made_state(name)
    if change is None:
        del state[key]
    else:
        state[key] = change
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=message):
        read_compvis(tmp_path / "model.ckpt", TINY[name])


def test_without_averaged_weights(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in made_state("beds").items() if "ema" not in key}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="no averaged weights"):
        read_compvis(tmp_path / "model.ckpt", TINY["beds"])


def test_an_unknown_model_asks_for_its_configuration(tmp_path: Path) -> None:
    line = ptq4dm.refused("convert", str(made_file(tmp_path / "m.ckpt", "cin")), str(tmp_path / "f"), cwd=tmp_path)
    assert "is none of cin256-v2, lsun_beds256, lsun_churches256" in line


YAML = """
model:
  params:
    linear_start: 0.0015
    linear_end: 0.0195
    use_ema: false
    unet_config:
      params: {image_size: 64, in_channels: 3, out_channels: 3, model_channels: 192, attention_resolutions: [8, 4, 2],
        num_res_blocks: 2, channel_mult: [1, 2, 3, 5], num_heads: 1, use_spatial_transformer: true,
        transformer_depth: 1, context_dim: 512}
    first_stage_config:
      target: ldm.models.autoencoder.VQModelInterface
      params:
        embed_dim: 3
        n_embed: 8192
        ddconfig: {z_channels: 3, resolution: 256, ch: 128, ch_mult: [1, 2, 4], num_res_blocks: 2, attn_resolutions: []}
    cond_stage_config:
      params: {n_classes: 1001, embed_dim: 512}
"""


def test_the_official_configuration_is_the_models(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(YAML)
    assert read_configuration(tmp_path / "config.yaml") == MODELS["cin256-v2"]
    (tmp_path / "config.yaml").write_text(YAML.replace("z_channels: 3", "z_channels: 4"))
    with pytest.raises(UserError, match="embed_dim"):
        read_configuration(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("model: {}")
    with pytest.raises(UserError, match="no configuration of a latent diffusion model"):
        read_configuration(tmp_path / "config.yaml")
