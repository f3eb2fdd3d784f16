"""The verbs that every paper has, over three made engines: which engine, which run, whose settings, what is refused."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from paperkit.command.engines import Engine, device, main
from paperkit.errors import UserError
from paperkit.files.runs import RUN_VARIABLE, RunFolder

DIGITS = '''
"""The embedded experiment."""
import os
from dataclasses import dataclass
from typing import Any
from paperkit.command.engines import refuse_changes, settings_of

@dataclass
class Settings:
    """Settings.

    Args:
        seeds: how many.
        rates: learning rates.
        processes: side by side.
    """

    seeds: int = 2
    rates: tuple[float, ...] = (0.1,)
    processes: int = 1

def add_arguments(parser):
    parser.add_class_arguments(Settings)

def check(options, run):
    refuse_changes(options, run, free=("processes",))

def train(run, options, resuming):
    print("digits", settings_of(options, Settings), resuming, os.environ["PAPERKIT_RUN"] == str(run.path.absolute()))
    if options.processes == 7:
        raise KeyboardInterrupt

def evaluate(run, options):
    refuse_changes(options, run, free=("processes",))
    print("evaluated", run.path, options.seeds, options.output)

def figures(run, options):
    return [run.path / "figures" / "curve.png"]
'''
IMAGES = '''
"""Training on images."""
from dataclasses import dataclass, field
from typing import Any
from paperkit.errors import UserError

@dataclass
class Network:
    """A network.

    Args:
        name: its name.
        options: of any kind.
    """

    name: str = "vit"
    options: Any = None

def add_arguments(parser):
    parser.add_class_arguments(Network, "network")
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--save_every", type=int, default=10)

def add_evaluation_arguments(parser):
    parser.add_argument("--best", action="store_true")

def check(options, run):
    if options.lr <= 0:
        raise UserError(f"lr {options.lr} must be positive")

def train(run, options, resuming):
    print("images", options.network, options.lr, resuming)
    if options.save_every == 7:
        raise KeyboardInterrupt

def evaluate(run, options):
    print("evaluated", run and run.path, options.lr, options.best, options.output)
'''
SCENES = '''
"""Segmentation by Python configs."""
def add_arguments(parser):
    parser.add_argument("--amp", action="store_true")

def train(run, options, resuming):
    print("scenes", options.config, options.amp, resuming)
    if not resuming:
        raise KeyboardInterrupt

def evaluate(run, options):
    print("evaluated", run.path, options.amp)
'''
ENGINES = {
    "digits": Engine("embedded experiment", "made_digits"),
    "images": Engine("images, Lightning", "made_images_engine"),
    "scenes": Engine("segmentation, mmengine", "made_scenes", configs=".py"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"made_digits": DIGITS, "made_images_engine": IMAGES, "made_scenes": SCENES}.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "five.yaml").write_text("engine: images\nlr: 5\nnetwork: {name: swin}\n")
    (tmp_path / "six.yaml").write_text("engine: images\nlr: 6\n")
    (tmp_path / "scenes.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]):
    def run(*argv: str) -> tuple[int, str, str]:
        code = main("toy", "A toy.", ENGINES, {}, "made_kinds", list(argv))
        output, errors = capfd.readouterr()
        assert len(errors.splitlines()) == (code != 0), errors
        return code, output, errors

    return run


def settings(run: str) -> dict:
    return yaml.safe_load((Path(run) / "config.yaml").read_text())


def test_without_options_the_first_engine_trains(call) -> None:
    code, output, _ = call("train", "--name", "a")
    assert code == 0 and "digits Settings(seeds=2, rates=(0.1,), processes=1) False True" in output
    assert settings("runs/toy/a") == {"engine": "digits", "seeds": 2, "rates": [0.1], "processes": 1}
    about = json.loads(Path("runs/toy/a/env.json").read_text())
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["threads"] == torch.get_num_threads() and about["cpu"]["cores"] >= 1
    assert RunFolder("runs/toy/a").finished and RUN_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--config", "five.yaml"), "images Network(name='swin', options=None) 5.0 False"),
        (("--config", "five.yaml", "--config", "six.yaml"), "images Network(name='swin', options=None) 6.0 False"),
        (("--config=six.yaml", "--config", "five.yaml"), "images Network(name='swin', options=None) 5.0 False"),
        (("--lr", "7", "--config", "five.yaml"), "images Network(name='swin', options=None) 7.0 False"),
        (("--engine", "images"), "images Network(name='vit', options=None) 0.5 False"),
        (("--engine=images", "--config", "six.yaml"), "images Network(name='vit', options=None) 6.0 False"),
    ],
)
def test_configs_and_options(words: tuple[str, ...], found: str, call) -> None:
    code, output, _ = call("train", *words)
    assert code == 0 and found in output


def test_the_last_config_that_names_an_engine_has_it(call, here: Path) -> None:
    (here / "plain.yaml").write_text("seeds: 3\n")
    (here / "digits.yaml").write_text("engine: digits\nseeds: 4\n")
    assert "digits Settings(seeds=3" in call("train", "--config", "digits.yaml", "--config", "plain.yaml")[1]
    code, _, error = call("train", "--config", "digits.yaml", "--config", "five.yaml")
    assert code == 2 and "seeds" in error  # images has no such option


@pytest.mark.parametrize("root", [("--root", "other"), ("--root=other",)])
@pytest.mark.parametrize("resume", [("--resume",), ("--resume", "r"), ("--resume=r",), ("--resume", "other/toy/r")])
def test_resume(root: tuple[str, ...], resume: tuple[str, ...], call) -> None:
    assert call("train", "--config", "five.yaml", "--save_every", "7", "--name", "r", *root)[0] == 130
    code, output, _ = call("train", *root, *resume, "--lr", "3", "--save_every", "8")
    assert code == 0 and "images Network(name='swin', options=None) 3.0 True" in output
    assert settings("other/toy/r") == {
        "engine": "images", "network": {"name": "swin", "options": None}, "lr": 3.0, "save_every": 8,
    }  # fmt: skip
    code, _, error = call("train", *root, *resume)
    assert code == 1 and ("is finished" in error or "no unfinished run in other/toy" in error)


def test_a_config_beside_resume_goes_over_the_saved_settings(call) -> None:
    call("train", "--config", "five.yaml", "--save_every", "7", "--name", "r")
    assert "options=None) 6.0 True" in call("train", "--resume", "r", "--config", "six.yaml", "--save_every", "8")[1]


def test_finished_stages_keep_their_settings(call) -> None:
    assert call("train", "--seeds", "3", "--processes", "7", "--name", "d")[0] == 130
    code, _, error = call("train", "--resume", "d", "--seeds", "4")
    assert (code, error) == (1, "error: a run keeps its settings: seeds was 3, is 4\n")
    code, output, _ = call("train", "--resume", "d", "--processes", "2")
    assert code == 0 and "seeds=3, rates=(0.1,), processes=2) True" in output


def test_an_early_kill_leaves_nothing_to_continue(call) -> None:
    call("train", "--config", "five.yaml", "--save_every", "7", "--name", "r")
    RunFolder.create("runs", "toy", "dead")
    code, output, _ = call("train", "--resume", "--save_every", "8")
    assert code == 0 and "passed over runs/toy/dead: it was stopped before its settings were written" in output
    assert "run folder runs/toy/r" in output
    assert call("train", "--resume", "dead")[0] == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--config", "nowhere.yaml"), 1, "cannot read the config nowhere.yaml: No such file or directory"),
        (("--engine", "images", "--config", "nowhere.yaml"), 1, "cannot read the config nowhere.yaml: No such file"),
        (("--config", "nowhere.py"), 1, "cannot read the config nowhere.py: No such file or directory"),
        (("--engine", "video"), 1, "--engine video: no engine 'video'; there are digits, images, scenes"),
        (("--config",), 2, "argument --config: expected one argument"),
        (("--resume", "nothing"), 1, "no run folder at runs/toy/nothing"),
        (("--resume",), 1, "no unfinished run in runs/toy"),
        (("--engine", "images", "--lr", "0"), 1, "lr 0.0 must be positive"),
        (("--engine", "images", "--lrr", "1"), 2, "lrr"),
        (("--name", "a/../../escaped"), 1, "--name 'a/../../escaped' is no name of a folder"),
        (("--name", ".."), 1, "--name '..' is no name of a folder"),
    ],
)
def test_refused(words: tuple[str, ...], code: int, says: str, call) -> None:
    found, _, error = call("train", *words)
    assert found == code and says in error
    assert not Path("runs").exists() and not Path("escaped").exists()  # before there is a run folder


def test_another_engine_cannot_continue_a_run(call) -> None:
    call("train", "--config", "five.yaml", "--save_every", "7", "--name", "r")
    for words in (("--engine", "digits"), ("--config", "scenes.py")):
        code, _, error = call("train", "--resume", "r", *words)
        assert code == 1 and "runs/toy/r is a run of engine images" in error


def test_eval_is_of_the_run_s_own_engine(call) -> None:
    call("train", "--config", "five.yaml", "--name", "i")
    call("train", "--seeds", "3", "--name", "d")
    assert call("eval")[1] == "evaluated runs/toy/d 3 runs/toy/d\n"  # the newest
    assert call("eval", "--ckpt", "runs/toy/i", "--best")[1] == "evaluated runs/toy/i 5.0 True runs/toy/i\n"
    assert "5.0 False elsewhere" in call("eval", "--ckpt", "runs/toy/i", "--output", "elsewhere")[1]
    assert call("eval", "--ckpt", "runs/toy/i", "--lr", "0")[0] == 0  # what cannot be trained can be evaluated
    assert "seeds was 3, is 4" in call("eval", "--ckpt", "runs/toy/d", "--seeds", "4")[2]
    Path("weights.pth").touch()
    assert call("eval", "--ckpt", "weights.pth", "--config", "six.yaml")[1] == (
        "evaluated None 6.0 False runs/toy/eval/weights\n"
    )
    Path("runs/toy/i/best").mkdir()
    assert "i 5.0 False" in call("eval", "--ckpt", "runs/toy/i/best")[1]  # weights within a run are of its engine
    Path("saved").mkdir()
    assert call("eval", "--ckpt", "saved")[0] == 1
    Path("saved/config.json").touch()
    assert call("eval", "--ckpt", "saved", "--engine", "images")[1] == (
        "evaluated None 0.5 False runs/toy/eval/saved\n"
    )
    code, _, error = call("eval", "--ckpt", "runs/toy/i", "--engine", "digits")
    assert code == 1 and "runs/toy/i is a run of engine images; --engine digits asks for digits" in error
    assert call("eval", "--ckpt", "nowhere")[0] == 1


def test_figures(call) -> None:
    call("train", "--config", "five.yaml", "--name", "i")
    call("train", "--name", "d")
    assert call("figures")[1] == "runs/toy/d/figures/curve.png\n"
    assert call("figures", "runs/toy/d", "--root", "other")[1] == "runs/toy/d/figures/curve.png\n"
    assert "engine images draws no figures" in call("figures", "runs/toy/i")[2]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("verb", ["train", "eval", "figures"])
def test_help(verb: str, engine: str, call) -> None:
    if (verb, engine) in (("figures", "images"), ("figures", "scenes")):
        pytest.skip("these draw none")
    code, output, _ = call(verb, "--engine", engine, "--help")
    assert code == 0 and f"below are the options of {engine};" in output
    assert "\n  images  images, Lightning\n" in output
    assert ("--save_every" in output) == (engine == "images" and verb != "figures")


def test_a_python_config_is_only_read_when_it_is_named(call) -> None:
    code, output, _ = call("train", "--config", "scenes.py", "--amp", "--name", "s")
    assert code == 130 and "scenes ['scenes.py'] True False" in output
    assert settings("runs/toy/s") == {"engine": "scenes", "amp": True}
    assert "scenes [] True True" in call("train", "--resume", "s")[1]


BUILDS = "{class_path: subprocess.Popen, init_args: {args: 'touch built', shell: true}}"


@pytest.mark.parametrize("value", [BUILDS, f"[{BUILDS}]", f"{{a: {BUILDS}}}", "{class_path: antigravity.geohash}"])
def test_nothing_that_a_file_names_is_built(value: str, call, here: Path) -> None:
    """Neither from a config nor from a run folder, also where an option takes any value."""
    (here / "evil.yaml").write_text(f"engine: images\nnetwork:\n  options: {value}\n")
    code, output, _ = call("train", "--config", "evil.yaml", "--save_every", "7", "--name", "e")
    assert code == 130 and "class_path" in output
    assert call("train", "--resume", "e", "--save_every", "8")[0] == 0
    assert call("eval", "--ckpt", "runs/toy/e")[0] == 0
    assert not (here / "built").exists() and "antigravity" not in sys.modules


def test_device() -> None:
    assert str(device("cpu")) == "cpu" and str(device("auto")) in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match="no device"):
            device(wrong)
