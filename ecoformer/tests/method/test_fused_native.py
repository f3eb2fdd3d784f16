"""The C++ form of inference against the plain one: every size, stride and mode, and what passes through it."""

import functools
import platform
import warnings
from collections.abc import Iterator

import pytest
import torch
from made import GOLDEN
from torch import Tensor

from ecoformer.method import fused_attention_native as native
from ecoformer.method.attention import EcoFormerAttention, fit_hashes
from ecoformer.method.fused_attention import fuse, fused_attention
from ecoformer.method.fused_attention_native import native_attention
from ecoformer.method.hash_fit import FitOptions
from ecoformer.method.kernel_hash import normalise
from paperkit.native import cpu_features, library
from paperkit.verification.reference_file import ReferenceFile

Fitted = tuple[Tensor, Tensor, Tensor, float]
SIZES = (
    (1, 1, 1, 8, 3, 1),
    (1, 1, 784, 64, 25, 16),
    (2, 3, 70, 20, 5, 7),
    (1, 5, 300, 32, 25, 16),
    (2, 2, 33, 64, 40, 32),
    (1, 1, 900, 96, 61, 3),
    (3, 1, 17, 33, 29, 9),
    (1, 3, 16, 16, 28, 4),
)
"""B, H, N, C, m, b: one token, below, at and past a block of tokens, a row's vectors, and what registers hold."""


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def drawn(batch: int, heads: int, tokens: int, width: int, supports: int, bits: int) -> tuple[Tensor, Tensor, Fitted]:
    """qk and v as a layer's product leaves them (strided), one token of no length; a hash."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    qk, v = normal(batch, tokens, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    qk[0, 0, tokens // 2] = 0
    mvec = 0.4 + 0.1 * normal(1, heads, 1, supports)
    anchor = normalise(normal(1, heads, supports, width))
    return qk, v, (anchor, mvec, normal(heads, bits, supports), bits + 1.0)


def served(qk: Tensor, v: Tensor, fitted: Fitted, mode: str = "released") -> Tensor:
    out = native_attention(qk, v, *fitted, mode)
    assert out is not None
    return out


needed = pytest.mark.skipif(native.kernel() is None, reason="needs a C++ compiler")


@needed
@pytest.mark.parametrize("mode", ["released", "global"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_are_those_of_the_plain_form(size: tuple[int, ...], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    qk, v, fitted = drawn(*size)
    expected = fused_attention(qk, v, *fitted, mode)
    for threads in (1, 2, 3):  # pairs of sample and head that go whole to a thread, and pairs that are shared
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = served(qk, v, fitted, mode)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(out, served(qk, v, fitted, mode))


@needed
@pytest.mark.parametrize("mode", ["released", "global"])
def test_any_strides_are_read(mode: str) -> None:
    qk, v, fitted = drawn(2, 2, 40, 16, 6, 8)
    expected = fused_attention(qk, v, *fitted, mode)
    columns = qk.transpose(-1, -2).contiguous().transpose(-1, -2)
    for first, second in ((qk.contiguous(), v), (columns, v.contiguous()), (qk, v[:1, :1].expand_as(v))):
        wanted = expected if second.stride(0) else fused_attention(first, second, *fitted, mode)
        torch.testing.assert_close(served(first, second, fitted, mode), wanted, rtol=1e-5, atol=1e-6)
    joined = served(qk, v, fitted, mode).transpose(1, 2)
    assert joined.is_contiguous()


@needed
@pytest.mark.parametrize("mode", ["released", "global"])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_code_of_zero_is_none(rows: int, mode: str) -> None:
    """Rows of the projection that are 0, as before a fit: their bits count nothing."""
    qk, v, (anchor, mvec, A, bias) = drawn(1, 2, 50, 20, 6, 8)
    A[0, :rows] = 0
    torch.testing.assert_close(
        served(qk, v, (anchor, mvec, A, bias), mode),
        fused_attention(qk, v, anchor, mvec, A, bias, mode),
        rtol=1e-5,
        atol=1e-6,
    )


@needed
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_passes_through(value: float) -> None:
    qk, v, fitted = drawn(2, 2, 40, 16, 6, 8)
    for place in (qk, v, fitted[0]):
        kept = place.clone()
        place[..., 3, 2] = value
        found, expected = served(qk, v, fitted), fused_attention(qk, v, *fitted)
        finite = expected.isfinite()
        assert torch.equal(found.isfinite(), finite)
        torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-6)
        assert not bool(found[..., 2].isfinite().any())
        place.copy_(kept)
    qk[0, 1, 3, 2] = value
    for form in (native_attention, fused_attention):
        out = form(qk, v, *fitted)
        assert out is not None and bool(out[0, 1].isnan().all())
        assert bool(out[0, 0].isfinite().all()) and bool(out[1].isfinite().all())
    fitted[2][1, 4, 3] = qk[0, 1, 3, 2] = float("nan")
    assert served(qk, v, fitted)[:, 1].isnan().all()


@needed
def test_equal_tokens_at_a_support_have_codes_of_the_plain_form() -> None:
    """sigma is rounding alone there, and is held above 0."""
    qk, v, (_, mvec, A, bias) = drawn(1, 1, 20, 8, 1, 4)
    qk[:] = torch.eye(8)[0]
    fitted = (torch.eye(8)[:1][None, None], mvec[..., :1], A[..., :1], bias)
    torch.testing.assert_close(served(qk, v, fitted), fused_attention(qk, v, *fitted))


def test_what_does_not_fit_is_left_to_the_plain_form() -> None:
    qk, v, fitted = drawn(1, 2, 40, 16, 6, 8)
    assert native_attention(qk.double(), v, *fitted) is None
    assert native_attention(qk, v.half(), *fitted) is None
    assert native_attention(qk, v[..., :8], *fitted) is None
    assert native_attention(qk[:, :, :0], v[:, :, :0], *fitted) is None
    assert native_attention(qk.to("meta"), v.to("meta"), *fitted) is None
    assert native_attention(qk, v, *fitted[:2], torch.ones(2, 33, 6), 34.0) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert native_attention(qk, torch.zeros(1, 2, 40, 16, requires_grad=True), *fitted) is None


@needed
def test_a_fused_layer_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode(False):
        torch.manual_seed(0)
        layer = EcoFormerAttention(20, 2, 7, 5, fit=FitOptions(topk=4, iterations=3)).eval()
        x = torch.randn(2, 40, 20)
        fit_hashes(layer, x)
        expected, fused = layer(x), fuse(layer, compiled=False)
        program = torch.export.export(fused, (x,)).module()
        torch.testing.assert_close(program(x), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(fused, "form", None)
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-6)


@needed
def test_the_authors_tensors_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ReferenceFile.read(GOLDEN / "eco_attention.safetensors", ["eco_attention"])
    state = {key: value for key, value in file.part("sd.").items() if not key.endswith("projection_matrix")}
    c = file.config
    layer = EcoFormerAttention(c["dim"], c["num_heads"], c["nbits"], c["m"], "to_qk.bias" in state)
    layer.load_state_dict(state)
    layer.ksh.mark_fitted(True)
    fused = fuse(layer.float(), compiled=False)
    monkeypatch.setattr(fused, "form", None)
    torch.testing.assert_close(fused(file.inputs["x"].float()), file.outputs["y"].float(), rtol=1e-5, atol=1e-5)


@needed
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_older_processors_compute_the_same(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of 4 and of 8 lanes; no registers of 16."""
    if processor == "x86-64-v3" and not {"avx2", "fma", "bmi2"} <= cpu_features():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(native, "FLAGS", (f"-march={processor}", *native.FLAGS[1:]))
    monkeypatch.setattr(native, "kernel", functools.cache(native.kernel.__wrapped__))
    for size in SIZES:
        qk, v, fitted = drawn(*size)
        torch.testing.assert_close(served(qk, v, fitted), fused_attention(qk, v, *fitted), rtol=1e-5, atol=1e-6)


def test_without_a_compiler_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(native, "kernel", native.kernel.__wrapped__)
    monkeypatch.setattr(native, "library", lambda name, sources, flags: library("no-compiler", sources, flags=flags))
    qk, v, fitted = drawn(1, 2, 40, 16, 6, 8)
    with pytest.warns(UserWarning, match=r"^no-compiler: no compiled kernel \(/nowhere/c\+\+: No such file"):
        assert native_attention(qk, v, *fitted) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_attention(qk, v, *fitted) is None
