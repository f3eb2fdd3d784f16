"""ONNX and torch.export with free sizes against PyTorch; the Triton kernel against the plain form."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from litv2.deployment.exporting import load_program, to_onnx, to_program
from litv2.method.window_attention import window_attention
from litv2.models.classifier import LITv2
from paperkit.errors import UserError

TINY = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), num_classes=10)


def moved_offsets() -> LITv2:
    model = LITv2(**TINY).eval()
    for name, p in model.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


def test_onnx_agrees_at_any_size(tmp_path: Path) -> None:
    model = moved_offsets()
    assert to_onnx(model, tmp_path / "m.onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 32, 32), (3, 3, 70, 102), (2, 3, 33, 95)):
        image = torch.randn(*shape)
        (found,) = session.run(["logits"], {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(image), rtol=1e-4, atol=1e-5)


def test_exported_program_agrees_at_multiples_of_32(tmp_path: Path) -> None:
    model = moved_offsets()
    assert to_program(model, tmp_path / "m.pt2") < 1e-5
    program = load_program(tmp_path / "m.pt2")
    with torch.no_grad():
        for shape in ((1, 3, 32, 32), (2, 3, 96, 160), (1, 3, 224, 64)):
            image = torch.randn(*shape)
            torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-5)


def test_fixed_positions_are_refused(tmp_path: Path) -> None:
    model = LITv2(**TINY, attention="msa", pos="rel", img_size=64)
    for write in (to_program, to_onnx):
        with pytest.raises(UserError, match="bound to one image size"):
            write(model, tmp_path / "m")


KERNEL = """
import torch
from litv2.method.window_attention import window_attention
from litv2.method.window_attention_triton import launch as kernel
torch.manual_seed(0)
for window, heads, d in ((2, 2, 32), (3, 1, 16), (4, 3, 16)):
    wide = torch.randn(2, 2 * window, 3 * window, 3 * heads * d + 5)
    qkv = wide[..., 5:]
    expected = window_attention(qkv, heads, window, 0.3, form="explicit")
    torch.testing.assert_close(kernel(qkv, heads, window, 0.3), expected, rtol=1e-5, atol=1e-5)
print("equal")
"""


def test_triton_kernel_in_the_interpreter() -> None:
    """Triton's interpreter runs the kernel's own code on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("window", [2, 3, 4])
def test_triton_kernel_on_cuda(window: int) -> None:
    qkv = torch.randn(2, 4 * window, 5 * window, 3 * 2 * 32, device="cuda", requires_grad=True)
    results = [window_attention(qkv, 2, window, 0.2, form=form) for form in ("explicit", "triton")]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), qkv)[0] for y in results]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
