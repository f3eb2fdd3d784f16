"""What users of spaces, architectures, budgets and searches get wrong: one line each, and nothing half written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import focusformer, write_yaml

from focusformer.experiment.choosing import budgets, reachable
from focusformer.experiment.run import seed_folder
from focusformer.experiment.settings import FOCUS, WINDOW, ExperimentConfig
from focusformer.experiment.supernets import MODEL, SAMPLER
from focusformer.method.architecture import SPACES
from focusformer.models.folders import SavedSupernet
from focusformer.models.saved_sampler import SavedSampler
from paperkit.files.runs import RunFolder

DIGITS = SPACES["digits"].to_plain()


def made_run(root: Path, name: str) -> RunFolder:
    """What a search reads of a run of digits: fresh weights in place of trained ones."""
    run, anchors = RunFolder.create(root, "focusformer", name), {"macs": list(budgets(reachable()))}
    run.write_config({"engine": "digits", "seeds": 1})
    torch.manual_seed(0)
    folder = seed_folder(run.path, ExperimentConfig().first_seed) / FOCUS
    SavedSampler(DIGITS, anchors, least=WINDOW).save_pretrained(folder / SAMPLER)
    SavedSupernet(DIGITS).save_pretrained(folder / MODEL)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits, an unfinished one, and every kind of bad space and latency table."""
    folder = tmp_path_factory.mktemp("bad")
    made_run(folder / "runs", "good").mark_finished()
    made_run(folder / "runs", "open")
    SavedSupernet(DIGITS).save_pretrained(folder / "supernet")
    for name, section, key, value in [
        ("empty", "SEARCH_SPACE", "DEPTH", []), ("double", "SEARCH_SPACE", "NUM_HEADS", [1, 1]),
        ("wide", "SEARCH_SPACE", "EMBED_DIM", [16, 64]), ("text", "SEARCH_SPACE", "MLP_RATIO", ["four"]),
        ("heads", "SUPERNET", "NUM_HEADS", 7), ("unknown", "SUPERNET", "WIDTH", 3),
    ]:  # fmt: skip
        write_yaml(folder / f"{name}.yaml", {**DIGITS, section: {**DIGITS[section], key: value}})
    write_yaml(folder / "half.yaml", {"SUPERNET": DIGITS["SUPERNET"]})
    (folder / "code.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    part = {"device": "", "stem": {"16": 1.0}, "blocks": {"16/1/0.5": 1.0}}
    for name, content in {"lacks": part, "negative": {**part, "stem": {"16": -1}}, "form": [1], "blocks": {
        **part, "blocks": {"16": 1.0}}}.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


RUN = ["search", "--ckpt", "runs/focusformer/good"]
LATENCY = ["latency", "--seconds", "0.01", "--space"]
CASES: dict[str, tuple[list[Any], str]] = {
    "no choice": ([*LATENCY, "empty.yaml"], "the choices of depth"),
    "a choice twice": ([*LATENCY, "double.yaml"], "hold a value twice"),
    "a choice above the supernet": ([*LATENCY, "wide.yaml"], "is above the supernet's 48"),
    "a choice of text": ([*LATENCY, "text.yaml"], "are positive numbers"),
    "heads that do not fit": ([*LATENCY, "heads.yaml"], "do not fit into the width 48"),
    "an unknown key": ([*LATENCY, "unknown.yaml"], "unknown key 'WIDTH'"),
    "a section missing": ([*LATENCY, "half.yaml"], "has no section SEARCH_SPACE"),
    "code in a space": ([*LATENCY, "code.yaml"], "not YAML"),
    "an architecture above the sizes": (["extract", "64/4/2", "--ckpt", "supernet"], "is above the supernet's 48"),
    "an architecture of another form": (["extract", "64-4-2", "--ckpt", "supernet"], "no architecture"),
    "no budget": (RUN, "name one budget"),
    "two budgets": ([*RUN, "--macs", "300k", "--params", "6k"], "name one budget"),
    "a budget of text": ([*RUN, "--macs", "small"], "is no budget"),
    "a negative budget": ([*RUN, "--macs=-3"], "is no budget"),
    "an impossible budget": ([*RUN, "--macs", "900G"], "the nearest possible budget is"),
    "a budget below the space": ([*RUN, "--macs", "1"], "the nearest possible budget is"),
    "another constraint": ([*RUN, "--params", "10k"], "the run's sampler knows no params: ask by --macs"),
    "no latency table": ([*RUN, "--latency", "5ms", "--method", "random"], "a latency needs its table"),
    "a table that lacks entries": ([*RUN, "--latency", "5ms", "--latency-table", "lacks.json"], "lacks"),
    "a negative latency": ([*RUN, "--latency", "5ms", "--latency-table", "negative.json"], "positive milliseconds"),
    "a table of another form": ([*RUN, "--latency", "5ms", "--latency-table", "form.json"], "need an object"),
    "a table of other blocks": ([*RUN, "--latency", "5ms", "--latency-table", "blocks.json"], "WIDTH/HEADS/RATIO"),
    "no table there": ([*RUN, "--latency", "5ms", "--latency-table", "nowhere.json"], "nowhere.json"),
    "an unfinished run": (["search", "--ckpt", "runs/focusformer/open", "--macs", "1M"], "is not finished"),
    "no run": (["search", "--ckpt", "nowhere", "--macs", "1M"], "nowhere"),
    "weights that lie in no run": (["search", "--ckpt", "supernet", "--macs", "1M"], "supernet"),
    "a seed that is not there": ([*RUN, "--macs", "300k", "--seed", "9"], "not 9"),
    "no samples": ([*RUN, "--macs", "300k", "--method", "best", "--samples=-1"], "samples -1"),
    "no evaluations": ([*RUN, "--macs", "300k", "--method", "random", "--evaluations", "0"], "--evaluations 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(case: str, folder: Path) -> None:
    words, wanted = CASES[case]
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    assert wanted in focusformer.refused(*words, cwd=folder)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


def test_search_of_digits(folder: Path) -> None:
    """One call of the embedded experiment's sampler, and plain random search on the same supernet."""
    for method, evaluations in (("greedy", 1), ("random", 5)):
        words = [*RUN, "--macs", "300k", "--method", method, "--evaluations", 5, "--test", "--output", method]
        out = focusformer.here(*words, cwd=folder).out
        found = json.loads((folder / method / f"macs-300k-{method}.json").read_text())
        assert 0.75 * 300e3 <= found["macs"] <= 300e3 and found["evaluations"] == evaluations
        assert found["architecture"] in out and "held-out accuracy" in out and "test accuracy" in out
