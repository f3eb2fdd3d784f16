"""The stream of ids: the released one, and the two extensions."""

import numpy as np
import pytest

from snnet.method.sampling import IdStream


def test_uniform_is_numpys_stream() -> None:
    """One draw after another from the seeded generator, whatever position is asked for first."""
    generator = np.random.RandomState(2)
    expected = [generator.randint(0, 17) for _ in range(3000)]
    stream = IdStream(range(17), 2)
    assert stream[2999] == expected[2999]
    assert [stream[k] for k in range(3000)] == expected


def test_a_resumed_run_goes_on_with_the_same_ids() -> None:
    first, second = IdStream(range(9), 5), IdStream(range(9), 5)
    for step in range(40):
        first.at_step(step, 3)
    assert [second.at_step(step, 3) for step in range(40, 50)] == [first.at_step(step, 3) for step in range(40, 50)]


def test_sandwich_runs_the_ends_in_every_step() -> None:
    stream = IdStream([4, 5, 6, 7], 0, "sandwich", macs=[30, 10, 40, 20])
    steps = [stream.at_step(step, 4) for step in range(50)]
    assert all(step[:2] == [5, 6] for step in steps)
    assert {i for step in steps for i in step[2:]} == {4, 5, 6, 7}
    assert stream.at_step(3, 1) == [stream[3]], "a step of one id has no room for both ends"


def test_flops_sampling_favours_thin_bands() -> None:
    """Nine cheap configurations share a band, one dear configuration has its own: each band gets half of the draws."""
    stream = IdStream(range(10), 0, "flops", macs=[*range(1, 10), 1000])
    share = np.mean([stream[k] == 9 for k in range(4000)])
    assert 0.46 < share < 0.54
    assert {stream[k] for k in range(4000)} == set(range(10))


def test_extensions_need_costs() -> None:
    with pytest.raises(ValueError, match="multiply-adds"):
        IdStream(range(3), 0, "flops")
