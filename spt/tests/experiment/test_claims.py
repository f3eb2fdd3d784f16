"""The embedded experiment's claims through the real command; a file of its own, because it is the longest test."""

from pathlib import Path

from made import spt

from paperkit.results.metrics import Metrics
from spt.experiment.settings import LEAST, RANDOM, SENSITIVE


def test_claims_hold_and_the_run_folder_is_complete(tmp_path: Path) -> None:
    """The two claims that are safe on every processor: four seeds, four tasks, the three arms that they need."""
    arms = f"[{SENSITIVE},{RANDOM},{LEAST}]"
    out = spt.child("train", "--name", "claims", "--arms", arms, cwd=tmp_path).out
    run = tmp_path / "runs" / "spt" / "claims"
    metrics = Metrics.read(run / "metrics.json")
    claims = [claim for claim in metrics.claims if claim.asserted]
    assert len(claims) == 2 and all(claim.held for claim in claims), claims
    assert "held (asserted)" in out and len(metrics.seeds) == 4
    for name in ("config.yaml", "env.json", "metrics.json", "finished", "backbone.safetensors"):
        assert (run / name).is_file()
    for row in metrics.rows:
        if row.metric.startswith("trained of"):
            assert row.mean == 700
