"""What a command cannot do is one line and an exit code, before any work is done."""

from pathlib import Path

import pytest
from made import make_vtab, small_lists, spt


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["train", "--tasks", "[sun]"], 1, "no task 'sun'"),
        (["train", "--arms", "[moon]"], 1, "no arm 'moon'"),
        (["train", "--steps", "0"], 1, "steps 0 must be at least 1"),
        (["train", "--lr", "-1"], 1, "learning rates must be positive"),
        (
            ["train", "--budget", "0", "--steps", "1", "--pretrain_steps", "1", "--seeds", "1"],
            1,
            "budget 0 is smaller than one entry",
        ),
        (["train", "--seeds", "many"], 2, "seeds"),
        (["train", "--resume"], 1, "no unfinished run"),
        (["eval"], 1, "no finished run"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["eval", "--engine", "lists"], 1, "lies in no run folder"),
        (["fly"], 2, "no verb 'fly'"),
        (["bench", "--parts", "[moon]"], 1, "no part 'moon'"),
        (["verify", "nothing.safetensors"], 1, ""),
        (["export"], 1, "no finished run"),
        (["sweep", "--tasks", "[moon]"], 1, "no VTAB-1k task 'moon'"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, line: str, tmp_path: Path) -> None:
    ended = spt.here(*words, cwd=tmp_path, code=code)
    if words[0] == "verify":
        assert "no such file" in ended.out and not ended.err
    else:
        assert line in ended.line


def test_a_loss_that_is_not_finite_names_what_helps(tmp_path: Path) -> None:
    """The arms keep their settings on `--resume`, so a new run is advised."""
    words = ["--steps", "9", "--pretrain_steps", "1", "--seeds", "1", "--tasks", "[flip]", "--arms", "[linear probe]"]
    ended = spt.here("train", "--lr", "1e30", *words, cwd=tmp_path, code=1)
    assert "the loss is not finite" in ended.err and "start a new run with a lower --lr" in ended.err


def test_a_run_in_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    assert "cannot make the run folder" in spt.refused("train", cwd=tmp_path)


def test_help_needs_no_heavy_import(tmp_path: Path) -> None:
    for words in (["--help"], ["train", "--help"], ["eval", "--help"]):
        patch = "import sys\nfor name in ('torch', 'timm', 'pytorch_lightning'):\n    sys.modules[name] = None"
        assert spt.process(*words, cwd=tmp_path, patch=patch).out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data.root": "nowhere"}, "no VTAB-1k task at nowhere/svhn"),
        ({"data.name": "kitti"}, "no VTAB-1k task at"),
        ({"data.name": "moon"}, "no VTAB-1k task 'moon'"),
        ({"method.budget": "10"}, "smaller than one lora module"),
        ({"method.budget": "99999999"}, "larger than the model"),
        ({"backbone.file": "nowhere.npz"}, "no pretrained file at nowhere.npz"),
        ({"backbone.arch": "vit_moon"}, "no architecture 'vit_moon'"),
        ({"backbone.sizes": '{"in_chans": 1}'}, "in_chans 1 does not fit"),
        ({"backbone.sizes": '{"moon": 1}'}, "timm cannot build vit_tiny_patch16_224"),
        ({"backbone.sizes": '{"depth": "two"}'}, "timm cannot build vit_tiny_patch16_224"),
        ({"method.selection": "SELECTION"}, "of another architecture"),
        ({"recipe.lr": "1e38"}, "not finite"),
    ],
)
def test_bad_options_of_a_list_run(change: dict[str, str], line: str, lists: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "param_req_0.4_format_sample.pth"
    change = {name: str(golden) if value == "SELECTION" else value for name, value in change.items()}
    assert line in spt.refused("train", *small_lists(lists, **change), cwd=tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("savings.patch_drop", "0.25"),
        ("savings.keep_hardest", "0.5"),
        ("savings.sam_rho", "0.05"),
        ("savings.compile", "true"),
        ("ema.decay", "0.9"),
    ],
)
def test_savings_that_do_not_fit_leave_no_run_folder(option: str, value: str, lists: Path, tmp_path: Path) -> None:
    line = spt.refused("train", *small_lists(lists, **{option: value}), cwd=tmp_path)
    assert option.removeprefix("savings.") in line and "is not for this method" in line
    assert not list(tmp_path.iterdir())


def test_a_vtab_folder_that_lacks_something(lists: Path, tmp_path: Path) -> None:
    task = tmp_path / "vtab" / "svhn"
    damages = (
        (lambda: (task / "train800.txt").unlink(), "lacks the split file train800.txt"),
        (lambda: (task / "test.txt").unlink(), "lacks the split file test.txt"),
        (lambda: (task / "images" / "test" / "000002.jpg").unlink(), "1 of 6 images"),
        (lambda: (task / "test.txt").write_text("images/test/000000.jpg 11\n"), "class counts differ"),
        (lambda: (task / "images" / "train800" / "000000.jpg").write_bytes(b"half a picture"), "cannot read image"),
    )
    for number, (damage, line) in enumerate(damages):
        make_vtab(tmp_path / "vtab", "svhn")
        damage()
        words = ["train", "--name", str(number), *small_lists(lists, **{"data.root": str(tmp_path / "vtab")})]
        assert line in spt.refused(*words, cwd=tmp_path)
    assert not list(tmp_path.rglob("sensitivities.safetensors"))
