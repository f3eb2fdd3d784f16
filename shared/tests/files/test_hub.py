"""Folders of models: written whole or not at all, read strictly, and every fault of one is one line with its name."""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelHubMixin, PyTorchModelHubMixin
from torch import nn

from paperkit.errors import UserError
from paperkit.files import hub
from paperkit.files.hub import SavedInFolder, read_config, replaced_folder
from paperkit.files.weights import read_weights, save_weights


class Net(nn.Module, SavedInFolder, library_name="net", tags=["tiny"], license="apache-2.0"):
    """Linear layers; the last buffer is of training alone."""

    def __init__(self, width: int = 4, depth: int = 2, names: list[str] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.dropout = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x))
        return x


class Plain(nn.Module, PyTorchModelHubMixin, library_name="net", tags=["tiny"], license="apache-2.0"):
    """The same under huggingface_hub's own mixin."""

    def __init__(self, width: int = 4, depth: int = 2, names: list[str] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def listed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_saved_and_loaded(tmp_path: Path) -> None:
    net = Net(3, depth=1, names=["a", "b"])
    assert isinstance(net, ModelHubMixin) and net.save_pretrained(tmp_path / "deep" / "net") is None
    folder = tmp_path / "deep" / "net"
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(folder.parent) == ["net"]
    assert read_config(folder) == {"width": 3, "depth": 1, "names": ["a", "b"]}
    loaded = Net.from_pretrained(folder)
    assert same(loaded, net) and not loaded.training
    loaded.save_pretrained(tmp_path / "again")
    assert listed(tmp_path / "again") == listed(folder)
    card = (folder / "README.md").read_text()
    assert "library_name: net" in card and "- tiny" in card and "pytorch_model_hub_mixin" in card


def test_folders_are_those_of_the_hubs_mixin(tmp_path: Path) -> None:
    """Each reads what the other wrote; config and card are the same bytes."""
    ours, theirs = Net(names=["x"]), Plain(names=["x"])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert same(Plain.from_pretrained(tmp_path / "ours"), ours)
    assert same(Net.from_pretrained(tmp_path / "theirs"), theirs)
    for name in ("config.json", "README.md"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_what_a_model_leaves_out(tmp_path: Path) -> None:
    class Slim(Net):
        weights_metadata = {"format": "pt"}  # noqa: RUF012

        def weights_to_save(self) -> dict[str, torch.Tensor]:
            return {key: value for key, value in self.state_dict().items() if not key.endswith("bias")}

    Slim().save_pretrained(tmp_path)
    assert list(read_weights(tmp_path / "model.safetensors")) == ["layers.0.weight", "layers.1.weight"]
    with pytest.raises(UserError, match=r"does not fit Slim: 2 missing: layers\.0\.bias"):
        Slim.from_pretrained(tmp_path)


def test_pushed_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload gets the three files; without a name the repository is called as the folder."""
    seen: list[Any] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            seen.append(repo_id)
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
            seen.append(sorted(os.listdir(folder_path)))
            return "url"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert Net().save_pretrained(tmp_path / "mine", push_to_hub=True) == "url"
    assert seen == ["mine", ["README.md", "config.json", "model.safetensors"]]


def test_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(3)
    net.save_pretrained(tmp_path / "cache")
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert same(Net.from_pretrained("someone/net", revision="main"), net)
    assert asked["repo"] == "someone/net" and asked["revision"] == "main"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]

    def broken(repo: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", broken)
    with pytest.raises(UserError, match=r"^nowhere/net is no folder here, and the hub gave none: no route to host$"):
        Net.from_pretrained("nowhere/net")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json; a folder written by save_pretrained does"),
        (lambda f: (f / "model.safetensors").unlink(), r"no checkpoint at .*model\.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is damaged or no JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), r"config\.json is damaged or no JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json holds a list, not the arguments"),
        (lambda f: (f / "config.json").write_text(nested(100_000)), r"config\.json is damaged or no JSON"),
        (lambda f: (f / "config.json").write_text('{"width": NaN}'), r"config\.json is damaged .* holds NaN"),
        (lambda f: (f / "config.json").write_text(" " * 2_000_000), r"config\.json is no config: it has 2000000 bytes"),
        (lambda f: described(f, depth=1_000_000), r"config\.json: it describes a far larger model"),
        (lambda f: described(f, width=5_000), r"config\.json: it describes a far larger model"),
        (lambda f: described(f, width=10**12), r"config\.json does not describe a Net"),
        (lambda f: described(f, width="wide"), r"config\.json does not describe a Net"),
        (lambda f: described(f, width=-1), r"config\.json does not describe a Net"),
        (lambda f: described(f, colour="red"), r"config\.json does not describe a Net: .*'colour'"),
        (lambda f: described(f, depth=3), r"model\.safetensors does not fit Net: 2 missing: layers\.2\.weight"),
        (lambda f: described(f, depth=1), r"2 unexpected: layers\.1\.bias, layers\.1\.weight"),
        (lambda f: described(f, width=5), r"4 misshapen: .*layers\.0\.weight \(file 4x4, model 5x5\)"),
        (lambda f: truncated(f / "model.safetensors"), r"model\.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs"), r"model\.safetensors "),
    ],
)
def test_each_fault_of_a_folder_is_one_line(change: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    Net().save_pretrained(tmp_path)
    change(tmp_path)
    start = time.process_time()
    with pytest.raises(UserError, match=says) as caught:
        Net.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and str(tmp_path) in str(caught.value)
    assert time.process_time() - start < 20


def described(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_arguments_over_those_of_the_config(tmp_path: Path) -> None:
    Net().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"does not fit Net: 2 missing"):
        Net.from_pretrained(tmp_path, depth=3)
    assert Net.from_pretrained(tmp_path, names=["new"])._hub_mixin_config["names"] == ["new"]


# --- a good folder is never lost --------------------------------------------------------------------------------------


def on_a_full_disk(work: Callable[[], object], limit: int = 100_000) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("inside", [False, True], ids=["beside", "the present folder"])
def test_a_full_disk_leaves_the_old_folder(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "net"
    Net(3).save_pretrained(folder)
    (folder / "latency.json").write_text("{}")
    before = listed(tmp_path)
    if inside:
        monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="File too large"):
        on_a_full_disk(lambda: Net(300).save_pretrained(folder))
    assert listed(tmp_path) == before
    Net(5).save_pretrained(folder)
    assert Net.from_pretrained(folder).layers[0].in_features == 5
    assert (folder / "latency.json").read_text() == "{}" and os.listdir(tmp_path) == ["net"]
    assert len(os.listdir(folder)) == 4 and Path.cwd().exists()


def test_other_files_and_folders_stay(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("my card")
    (folder / "link").symlink_to("sub")
    Net().save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my card" and (folder / "link").is_symlink()
    assert (folder / "sub" / "notes.txt").read_text() == "mine"


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    Net(3).save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    Net(5).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and Net.from_pretrained(tmp_path / "real").layers[0].in_features == 5


def test_folders_that_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without the call: the files are renamed one by one."""
    folder = tmp_path / "net"
    Net(3).save_pretrained(folder)
    monkeypatch.setattr(hub.ctypes, "CDLL", lambda name: object())
    Net(5).save_pretrained(folder)
    assert Net.from_pretrained(folder).layers[0].in_features == 5 and os.listdir(tmp_path) == ["net"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("a file")
    with pytest.raises(UserError, match="it is a file, and a folder is to be written there"):
        Net().save_pretrained(tmp_path / "net")
    with pytest.raises(UserError, match=r"cannot write .*net/deeper"):
        Net().save_pretrained(tmp_path / "net" / "deeper")
    assert (tmp_path / "net").read_text() == "a file" and os.listdir(tmp_path) == ["net"]


@pytest.mark.parametrize("point", ["weights", "config", "sync", "exchange", "after"])
def test_a_kill_at_every_point_leaves_one_save_whole(point: str, tmp_path: Path) -> None:
    """Config and weights are of the same save, the old or the new; the next save removes what was left."""
    folder = tmp_path / "net"
    Net(3).save_pretrained(folder)
    pid = os.fork()
    if pid == 0:
        try:
            monkey = pytest.MonkeyPatch()
            die: Callable[..., None] = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            if point == "weights":
                monkey.setattr(hub, "save_weights", die)
            elif point == "config":
                monkey.setattr(Net, "generate_model_card", die)
                (folder / "README.md").unlink()
            elif point == "sync":
                monkey.setattr(hub, "_sync", die)
            elif point == "exchange":
                monkey.setattr(hub, "_exchanged", die)
            else:
                monkey.setattr(shutil, "rmtree", die)
            Net(5).save_pretrained(folder)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert Net.from_pretrained(folder).layers[0].in_features == (5 if point == "after" else 3)
    assert len(os.listdir(tmp_path)) == 2
    Net(6).save_pretrained(folder)
    assert os.listdir(tmp_path) == ["net"] and Net.from_pretrained(folder).layers[0].in_features == 6


def test_a_failed_block_leaves_no_trace(tmp_path: Path) -> None:
    def fail() -> None:
        with replaced_folder(tmp_path / "new") as temporary:
            save_weights(temporary / "w.safetensors", {"w": torch.ones(2)})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())
