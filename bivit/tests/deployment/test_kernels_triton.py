"""The Triton kernels against the plain form: in Triton's interpreter, and on CUDA where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bivit.deployment.packed_linear import PackedLinear
from bivit.method.binary_linear import RULES, BinaryLinear

kernels = pytest.importorskip("bivit.deployment.kernels_triton", reason="needs Triton")


def compare(inputs: int, outputs: int, rows: int, zero: str, device: str = "cpu") -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(inputs, outputs, RULES["pws"], zero=zero).to(device)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.normal_()
        layer.start_scale()
        x = torch.randn(2, rows, inputs, device=device)
        x[0] = x[0].round()
        packed = PackedLinear.of(layer)
        arguments = packed.weight_bits, packed.scale, packed.bias, zero == "plus"
        assert kernels.fits(x, outputs)
        torch.testing.assert_close(kernels.packed_linear(x, *arguments), layer(x), rtol=1e-5, atol=1e-3)
        x[1, 0, 0] = torch.nan
        found = kernels.packed_linear(x, *arguments)
        assert bool(found[1, 0].isnan().all()) and int(found.isnan().sum()) == outputs
        if device == "cuda":
            torch.testing.assert_close(packed(x.nan_to_num(1.0)), layer(x.nan_to_num(1.0)), rtol=1e-5, atol=1e-3)


def all_sizes(device: str = "cpu") -> None:
    for zero in ("ternary", "plus"):
        for size in ((64, 32, 16), (100, 33, 17), (1, 1, 1)):
            compare(*size, zero, device)


def test_in_the_interpreter() -> None:
    """A process of its own: whether Triton interprets is decided when the kernels are made."""
    here = Path(__file__)
    code = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem}; {here.stem}.all_sizes()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda() -> None:
    all_sizes("cuda")


@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernels_compile(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's compiler needs no GPU: what the interpreter lets pass and a GPU would not is found here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fixed = {"PLUS": False, "ROWS": kernels._ROWS, "OUTPUTS": kernels._OUTPUTS}
    for kernel in (kernels._pack, kernels._product):
        kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(fixed, "constexpr")
        kinds |= dict.fromkeys(("positive", "nonzero", "weights"), "*u32") | dict.fromkeys(("scale", "bias"), "*fp32")
        kinds |= {"out": "*fp32", "x": "*fp16"}
        constants = {(place,): fixed[name] for place, name in enumerate(kernel.arg_names) if name in fixed}
        source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert built.metadata.shared <= 48 << 10
