"""The Triton kernels against the plain form, in Triton's interpreter and on CUDA; which lengths of a code there are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoformer.method import attention
from ecoformer.method.attention import EcoFormerAttention, fit_hashes
from ecoformer.method.fused_attention import fuse
from ecoformer.method.hash_fit import FitOptions
from ecoformer.method.kernel_hash import KernelHash, normalise
from ecoformer.method.linear_attention import linear_attention
from ecoformer.training.hashing import HashConfig
from paperkit.errors import UserError

kernels = pytest.importorskip("ecoformer.method.fused_attention_triton", reason="needs Triton")

SIZES = ((8, 5, 6, 1), (8, 5, 6, 70), (32, 16, 25, 33), (24, 8, 6, 64), (32, 7, 25, 150))
"""C, b, m, N: below, at and past tiles of 32 tokens."""


def compare(
    width: int, bits: int, supports: int, tokens: int, device: str = "cpu", kind: torch.dtype = torch.float32
) -> None:
    """Both forms on strided tokens (B 2, H 2), one of them zero; hash and values drawn."""
    generator = torch.Generator().manual_seed(tokens)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    ksh = KernelHash(2, width, bits, supports).to(device)
    ksh.set_fit(drawn(2, bits, supports), 0.4 + 0.1 * drawn(1, 2, 1, supports), normalise(drawn(1, 2, supports, width)))
    qk, v = drawn(2, 2, tokens, 2, 2, width).to(kind).permute(1, 0, 3, 2, 4, 5)[..., 0, :].unbind(0)
    qk[0, 1, tokens // 2] = 0
    codes = ksh(normalise(qk))
    for mode in ("released", "global"):
        out, found = kernels.launch(qk, v, ksh.anchor, ksh.mvec, ksh.A, bits + 1.0, mode)
        assert found.dtype == torch.int8 and torch.equal(found.float(), codes)
        expected = linear_attention(codes, codes, v.float(), bits + 1.0, mode)
        assert out.dtype == kind and out.shape == expected.shape
        torch.testing.assert_close(out, expected.to(kind), rtol=1e-5, atol=1e-5 if kind == torch.float32 else 1e-2)


def compare_layers(device: str) -> None:
    """A whole layer and its fused copy go through the kernels in inference, and come out as before."""
    torch.manual_seed(0)
    layer = EcoFormerAttention(16, 2, 7, 5, fit=FitOptions(topk=4, iterations=3)).to(device).eval()
    x = torch.randn(2, 40, 16, device=device)
    fit_hashes(layer, x)
    expected, launched, launch = layer(x).detach(), [], kernels.launch  # with gradients: the plain form

    def counted(*arguments: object) -> tuple[Tensor, Tensor]:
        launched.append(arguments)
        return launch(*arguments)

    kernels.launch = counted
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fuse(layer, compiled=False)(x), expected, rtol=1e-5, atol=1e-5)
        assert len(launched) == 2
        layer(x, mask=torch.ones(2, 40, dtype=torch.bool, device=device))
        layer(x[:, :5])  # so few that the map of all pairs is taken
        layer.causal = True
        layer(x)
    assert len(launched) == 2
    kernels.launch = launch


@pytest.fixture(scope="module")
def interpreted() -> str:
    """What a process says in which Triton's interpreter runs the kernels' own code on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_and_outputs_are_those_of_the_plain_form_in_the_interpreter(
    size: tuple[int, ...], interpreted: str
) -> None:
    assert f"equal {size}\n" in interpreted


def test_half_precision_and_layers_in_the_interpreter(interpreted: str) -> None:
    assert "equal in half precision\n" in interpreted and "layers equal\n" in interpreted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_and_outputs_are_those_of_the_plain_form_on_cuda(size: tuple[int, ...]) -> None:
    with torch.no_grad():
        compare(*size, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_half_precision_and_layers_on_cuda() -> None:
    with torch.no_grad():
        compare(32, 16, 25, 2100, "cuda", torch.float16)
    compare_layers("cuda")


@pytest.mark.parametrize("capability", [75, 90])
def test_the_largest_kernel_compiles_without_tf32_and_in_48_kib(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's compiler needs no GPU: what the interpreter lets pass and a GPU would not is found here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    largest = dict(TINY=1e-18, C=128, M=25, BITS=16, WIDTH=128, MS=32, BS=32, BLOCK=kernels._BLOCK)
    for kernel in (kernels._means, kernels._codes, kernels._outputs):
        kinds = dict.fromkeys(kernel.arg_names, "i32")
        kinds |= dict.fromkeys(("qk", "v", "own", "out"), "*fp16")
        kinds |= dict.fromkeys(("sums", "squares", "anchor", "mvec", "A", "sigma", "contexts", "counts"), "*fp32")
        kinds |= dict(codes="*i8", bias="fp32", everyone="fp32") | dict.fromkeys(largest, "constexpr")
        constants = {(place,): largest[name] for place, name in enumerate(kernel.arg_names) if name in largest}
        source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 1})
        assert built.metadata.shared <= 48 << 10 and "tf32" not in built.asm["ptx"]


def test_what_does_not_fit_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    qk, A = torch.randn(1, 2, 40, 16), torch.randn(2, 8, 6)
    assert kernels.fits(qk, qk, A, 9.0)
    assert not kernels.fits(qk.double(), qk, A, 9.0)
    assert not kernels.fits(qk, qk[..., :8], A, 9.0)
    assert not kernels.fits(qk.requires_grad_(), qk, A, 9.0)
    with torch.no_grad():
        assert kernels.fits(qk, qk, A, 9.0)
        assert not kernels.fits(qk, qk, A, float(1 << 24))  # denominators past what float32 counts
        assert not kernels.fits(qk, qk, torch.randn(2, 33, 6), 34.0)
        assert not kernels.fits(qk, qk, torch.randn(2, 8, 33), 9.0)
        assert not kernels.fits(qk.repeat(1, 1, 1, 9), qk.repeat(1, 1, 1, 9), A, 9.0)
    binary = attention.BinaryAttention(2, 16, 8, 6)
    assert binary.by_kernels(qk, qk) is None  # on the CPU
    monkeypatch.setitem(sys.modules, "ecoformer.method.fused_attention_triton", None)  # as where Triton is missing
    monkeypatch.delattr("ecoformer.method.fused_attention_triton")
    monkeypatch.setattr(attention, "TRITON_DEVICES", ("cpu",))
    assert binary.by_kernels(qk, qk) is None


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_odd_lengths_of_a_code_train(bits: int) -> None:
    torch.manual_seed(0)
    layer = EcoFormerAttention(16, 2, bits, 5, fit=FitOptions(topk=4, iterations=3))
    HashConfig(nbits=bits).check()
    layer(torch.randn(2, 12, 16)).square().sum().backward()
    assert layer.ksh.is_fitted and layer.ksh.A.shape == (2, bits, 5)
    gradient = layer.to_v.weight.grad
    assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize("bits", [0, -3, 2.5])
def test_no_length_of_a_code_is_refused_in_one_line(bits: Any) -> None:
    with pytest.raises(UserError, match=rf"^a hash of {bits} bits .*1 at least$"):
        KernelHash(2, 8, bits, 5)
    with pytest.raises(UserError, match=rf"^hash.nbits {bits} is no length of a code; .*$"):
        HashConfig(nbits=bits).check()


if __name__ == "__main__":  # in Triton's interpreter
    torch.set_num_threads(1)
    kernels._RUNS = 2  # several tiles a program from 65 tokens on, not from 2,049
    with torch.no_grad():
        for size in SIZES:
            compare(*size)
            print("equal", size)
        compare(32, 16, 25, 70, kind=torch.float16)
        print("equal in half precision")
    attention.TRITON_DEVICES = ("cpu",)  # type: ignore[assignment]
    compare_layers("cpu")
    print("layers equal")
