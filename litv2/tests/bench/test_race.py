"""The bench through its command, shortened: what it writes, and that nothing is called faster without a clock."""

import json
from pathlib import Path

from litv2.commands import bench
from paperkit.command.cli import make_parser


def test_quick_layers_are_written(tmp_path: Path) -> None:
    parser = make_parser("litv2 bench")
    bench.add_arguments(parser)
    words = ["--quick", "--parts", '["layers"]', "--output", str(tmp_path)]
    assert bench.run(parser.parse_args(words)) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert {row["side"] for row in content["layers"]} == {14, 28} and content["machine"]["threads"] >= 1
    assert all(row["seconds"] > 0 and row["over_hilo"] > 0 for row in content["layers"])
    peaks = {(row["name"], row["side"]): row["peak"] for row in content["layers"]}
    scores = 12 * 28**4 * 4 / 2**20  # MiB of all heads' attention scores at 28 x 28
    assert peaks["MSA (explicit)", 28] > scores > peaks["MSA (SDPA)", 28] > 0
    assert (tmp_path / "bench.png").stat().st_size > 1000
