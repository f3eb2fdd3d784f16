"""Least squares: the two solvers, streaming, shared layers, precision, and that the anchors are left as they were."""

import pytest
import torch
from made import NETWORKS, build, randomise, swin, vit
from torch import Tensor, nn

from snnet.method.least_squares import (
    StreamedProducts,
    activations,
    ends,
    initialise,
    ridge_factor,
    set_affine,
    solve_pinv,
    with_bias,
)
from snnet.method.stitching import StitchedNetwork, StitchingLayer

every_family = pytest.mark.parametrize("name", NETWORKS)


def layers(network: StitchedNetwork) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items() if key.startswith("stitch_layers")}


def pictures(count: int, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def small() -> StitchedNetwork:
    """A well-conditioned one: widths of 4 to 8 against hundreds of tokens."""
    torch.manual_seed(0)
    network = StitchedNetwork([vit(4), vit(8)])
    randomise(network)
    return network.eval()


def test_pinv_finds_an_affine_map() -> None:
    x, a, b = torch.randn(300, 6), torch.randn(6, 9), torch.randn(9)
    solution = solve_pinv(x, x @ a + b)
    torch.testing.assert_close(solution[:-1], a, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solution[-1], b, rtol=1e-4, atol=1e-4)


def test_pinv_cuts_what_its_tolerance_cannot_see() -> None:
    """n x eps relative to the largest singular value: 2e4 rows cut at 2.4e-3, as the released code does."""
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 1e-3])
    solution = solve_pinv(x, x)
    torch.testing.assert_close(solution[:2, :2], torch.eye(2), rtol=1e-3, atol=1e-3)
    assert solution[2, 2].abs() < 0.01  # 1e-3 < 2.4e-3: cut, though the least-squares answer is 1


def test_ridge_factor_of_well_and_ill_conditioned_data() -> None:
    x, y = torch.randn(200, 5).double(), torch.randn(200, 4).double()
    xb = with_bias(x)
    expected = torch.linalg.lstsq(xb, y).solution
    torch.testing.assert_close(torch.cholesky_solve(xb.T @ y, ridge_factor(xb.T @ xb)), expected, rtol=1e-6, atol=1e-8)
    twice = torch.cat([xb, xb[:, :1]], 1)  # one column twice: the share is halved
    solution = torch.cholesky_solve(twice.T @ y, ridge_factor(twice.T @ twice))
    torch.testing.assert_close(solution[0], expected[0] / 2, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(twice @ solution, xb @ expected, rtol=1e-4, atol=1e-5)
    assert ridge_factor(torch.zeros(3, 3).double()).isfinite().all()


@every_family
def test_each_layer_is_the_mean_over_its_cuts(name: str) -> None:
    """From the definition: F of block p to F of block q - 1, one pseudo-inverse a cut, then the arithmetic mean."""
    network, x = build(name)
    images = torch.randn(24, *x.shape[1:])
    with torch.no_grad():
        found = activations(network, images)
    initialise(network, [images])
    for step, cuts in network.stitch_steps().items():
        if not cuts:
            continue
        solutions = []
        for front, end in (ends(step, cut) for cut in cuts):
            solutions.append(solve_pinv(found[front], found[end]))
        expected = StitchingLayer(
            len(solutions[0]) - 1, solutions[0].shape[1], *layouts(network, step.anchor, step.end)
        )
        with torch.no_grad():
            set_affine(expected, torch.stack(solutions).mean(0))
        got = network.stitching_layer(step)
        torch.testing.assert_close(got.transform.weight, expected.transform.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.transform.bias, expected.transform.bias, rtol=1e-5, atol=1e-5)


def layouts(network: StitchedNetwork, front: int, end: int | None) -> tuple:
    assert end is not None
    return network.families[front].layout, network.families[end].layout


def test_where_the_activations_are_read() -> None:
    """p inclusive: after block p; q inclusive: what enters block q; for q = 0 the embedded tokens."""
    network, images = small(), pictures(2)
    front, end = network.anchors
    with torch.no_grad():
        found = activations(network, images)
        x = front._pos_embed(front.patch_embed(images))
        for block in front.blocks[:2]:
            x = block(x)
        y = end._pos_embed(end.patch_embed(images))
    step = next(step for step, cuts in network.stitch_steps().items() if (1, 0) in cuts)
    at_front, at_end = ends(step, (1, 0))
    torch.testing.assert_close(found[at_front], x.flatten(0, 1))
    torch.testing.assert_close(found[at_end], y.flatten(0, 1))


def test_gram_equals_pinv_on_well_conditioned_data() -> None:
    network, images = small(), pictures(200)
    pinv = initialise(network, images.split(50), "pinv")
    by_pinv = layers(network)
    gram = initialise(network, images.split(50), "gram")
    assert by_pinv.keys() == layers(network).keys() and len(by_pinv) == 4
    for key, value in layers(network).items():
        torch.testing.assert_close(value, by_pinv[key], rtol=2e-3, atol=2e-4, msg=key)
    for step, fit in pinv.items():
        assert fit.residual == pytest.approx(gram[step].residual, rel=1e-3)
        assert 0 < fit.residual < 1


@pytest.mark.parametrize("combine", ["mean", "joint"])
def test_streaming_in_any_split(combine: str) -> None:
    network, images = small(), pictures(60)
    results = []
    for sizes in ([60], [30, 30], [1, 2, 57], [20, 20, 20]):
        initialise(network, iter(images.split(sizes)), "gram", combine)  # type: ignore[arg-type]
        results.append(layers(network))
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5, msg=key)
    initialise(network, [images[:30]], "gram", combine)  # type: ignore[arg-type]
    assert not torch.allclose(
        layers(network)["stitch_layers.0.0.transform.weight"], results[0]["stitch_layers.0.0.transform.weight"]
    )


def test_streaming_keeps_products_only() -> None:
    """What is held does not grow with the images."""
    network = small()
    held = []
    for batches in (1, 5):
        products = StreamedProducts(network, torch.float64)
        for images in pictures(4 * batches).split(4):
            with torch.no_grad():
                products.add(activations(network, images))
        held.append(sum(t.numel() for t in (*products.grams.values(), *products.crosses.values())))
    assert held[0] == held[1]


@every_family
def test_joint_solution_has_no_larger_residual_than_the_mean(name: str) -> None:
    network, x = build(name)
    images = torch.randn(24, *x.shape[1:])
    mean = initialise(network, [images], "gram", "mean")
    joint = initialise(network, [images], "gram", "joint")
    assert mean.keys() == joint.keys()
    for step, fit in mean.items():
        assert joint[step].residual <= fit.residual * (1 + 1e-6)
        if len(fit.cuts) == 1:
            assert joint[step].residual == pytest.approx(fit.residual, rel=1e-5)
    if any(len(fit.cuts) > 1 for fit in mean.values()):
        assert any(joint[step].residual < (1 - 1e-6) * fit.residual for step, fit in mean.items())


def test_joint_solution_is_that_of_all_rows_together() -> None:
    network, images = small(), pictures(40)
    with torch.no_grad():
        found = activations(network, images)
    initialise(network, [images], "gram", "joint")
    for step, cuts in network.stitch_steps().items():
        x = torch.cat([found[ends(step, cut)[0]] for cut in cuts]).double()
        y = torch.cat([found[ends(step, cut)[1]] for cut in cuts]).double()
        expected = torch.linalg.lstsq(with_bias(x), y).solution.float()
        weight = network.stitching_layer(step).transform.weight
        torch.testing.assert_close(weight, expected[:-1].T, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="gram"):
        initialise(network, [images], "pinv", "joint")


def test_reported_residual_is_that_of_the_layer() -> None:
    """Both accumulators' figures against the layer run on the rows."""
    network, images = small(), pictures(40)
    with torch.no_grad():
        found = activations(network, images)
    for solver in ("pinv", "gram"):
        fits = initialise(network, images.split(10), solver)  # type: ignore[arg-type]
        for step, fit in fits.items():
            layer = network.stitching_layer(step)
            left = total = 0.0
            for front, end in (ends(step, cut) for cut in fit.cuts):
                with torch.no_grad():
                    left += (layer(found[front]) - found[end]).double().square().sum().item()
                total += found[end].double().square().sum().item()
            assert fit.residual == pytest.approx((left / total) ** 0.5, rel=1e-4)


@every_family
def test_float32_products_cost_less_than_a_hundredth_of_the_residual(name: str) -> None:
    network, x = build(name)
    images = torch.randn(96, *x.shape[1:])  # of 24, LeViT's fit is so ill-conditioned that rounding shows in it
    exact = initialise(network, images.split(8), "gram")
    fast = initialise(network, images.split(8), "gram", products=torch.float32)
    for step, fit in exact.items():
        assert fast[step].residual == pytest.approx(fit.residual, rel=0.01)


@pytest.mark.parametrize("solver", ["pinv", "gram"])
@every_family
def test_mode_and_statistics_are_left_alone(name: str, solver: str) -> None:
    """The fit runs in eval mode, gives train mode back, and moves nothing but stitching layers."""
    network, x = build(name)
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    seen = []
    handles = [m.register_forward_hook(lambda m, *_: seen.append(m.training)) for m in network.anchors[0].modules()]
    initialise(network, [torch.randn(8, *x.shape[1:])], solver)  # type: ignore[arg-type]
    for handle in handles:
        handle.remove()
    assert seen and not any(seen)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("stitch_layers") for key in moved)


def test_mode_is_given_back_after_an_error() -> None:
    network = small().train()
    with pytest.raises(RuntimeError):
        initialise(network, [torch.randn(2, 5, 16, 16)])
    assert network.training and all(module.training for module in network.modules())


def test_drop_path_does_not_reach_the_fit() -> None:
    """In train mode half the blocks would be skipped at random; the layers are those of the eval mode."""
    network, images = small(), pictures(20)
    initialise(network, [images])
    expected = layers(network)
    for anchor in network.anchors:
        for block in anchor.blocks:
            block.drop_path1 = nn.Dropout(0.5)
    initialise(network.train(), [images])
    for key, value in layers(network).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["pinv", "gram"])
def test_a_layer_without_cuts_is_left_alone(solver: str) -> None:
    """The released assignment of 2 to 3 blocks gives the second layer no pair; it keeps what it had."""
    torch.manual_seed(0)
    network = StitchedNetwork([vit(8, depth=2), vit(12, depth=3)]).eval()
    without = [step for step, cuts in network.stitch_steps().items() if not cuts]
    assert len(without) == 1
    before = layers(network)
    fits = initialise(network, [pictures(8)], solver)  # type: ignore[arg-type]
    assert without[0] not in fits and len(fits) == len(network.stitch_steps()) - 1
    moved = {key for key, value in layers(network).items() if not torch.equal(value, before[key])}
    assert moved == {f"stitch_layers.0.{1 - without[0].index}.transform.{kind}" for kind in ("weight", "bias")}


def test_unequal_swins_by_the_released_assignment() -> None:
    network = StitchedNetwork([swin(4), swin(8, third=6)]).eval()
    fits = initialise(network, [pictures(4, 32)])
    third = [fit.cuts for step, fit in fits.items() if step.stage == 2]
    assert third == [((0, 1), (0, 2), (1, 3)), ((1, 4), (1, 5))]
