"""Models in folders of huggingface_hub's layout (`config.json`, `model.safetensors`, `README.md`), strictly.

`SavedInFolder` is huggingface_hub's mixin for PyTorch with three differences. A folder is replaced whole or not at all,
so that a full disk or a kill leaves the old one, and config and weights of two saves never mix. Every key of the
weights must fit the model that the config builds. Whatever is wrong with a folder is one line that names the file.
"""

import contextlib
import ctypes
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from paperkit.errors import UserError, one_line
from paperkit.files.atomic import STALE, _is_running, _sync_folder
from paperkit.files.weights import load_strict, read_weights, save_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LARGEST_CONFIG = 1 << 20
"""Bytes. The longest configs list some thousand names."""
SPARE = 8
"""A constructor may make this many times the weights that are saved: heads that it replaces, layers that it splits."""


class SavedInFolder(PyTorchModelHubMixin):
    """A mixin for modules whose arguments are plain values: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    Stands behind the module's class among the bases; options of huggingface_hub's mixin (`library_name`, `tags`,
    `license`, `model_card_template`) are given with them.

    Example:
        >>> class Net(nn.Module, SavedInFolder, library_name="net"): ...
        >>> Net(width=8).save_pretrained("folder")
        >>> net = Net.from_pretrained("folder")
    """

    weights_metadata: ClassVar[Mapping[str, str]] = {}
    """What the weight file says of itself."""

    def weights_to_save(self) -> dict[str, Tensor]:
        """The state dict; a model that leaves something out says so here."""
        assert isinstance(self, nn.Module)
        return self.state_dict()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes the folder, all of it or nothing; other files that lie in it stay. Arguments as in the mixin.

        Raises:
            UserError: `cannot write <path>: <reason>`.
        """
        folder = Path(save_directory)
        with replaced_folder(folder) as temporary:
            super().save_pretrained(temporary, config=config, model_card_kwargs=model_card_kwargs)
        if not push_to_hub:
            return None
        options = {"config": config, **push_to_hub_kwargs}
        return self.push_to_hub(repo_id or folder.resolve().name, model_card_kwargs=model_card_kwargs, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(save_directory / WEIGHTS, self.weights_to_save(), self.weights_metadata)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
        **model_kwargs: Any,
    ) -> Any:
        """The model of a folder, or of a repository of the hub, in eval mode.

        Args:
            model_kwargs: arguments of the constructor, over those of the config. The weights must still fit.

        Raises:
            UserError: if a file is missing, damaged or foreign, the config does not describe such a model, or the
                weights do not fit it.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options = dict(revision=revision, cache_dir=cache_dir, force_download=force_download, token=token)
            try:
                folder = Path(
                    snapshot_download(
                        str(pretrained_model_name_or_path),
                        allow_patterns=[CONFIG, WEIGHTS],
                        local_files_only=local_files_only,
                        **options,  # type: ignore[arg-type]
                    )
                )
            except Exception as error:
                reason = one_line(str(error))[:200]
                raise UserError(
                    f"{pretrained_model_name_or_path} is no folder here, and the hub gave none: {reason}"
                ) from error
        config = read_config(folder)
        state = read_weights(folder / WEIGHTS, advice=None)
        model = _built(cls, {**config, **model_kwargs}, state, folder)
        load_strict(model, state, str(folder / WEIGHTS))
        return model.to(map_location).eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a folder: plain values by name.

    Raises:
        UserError: if it is missing, unreadable, larger than a config can be, or no JSON object.
    """
    path = Path(folder) / CONFIG
    try:
        if not path.is_file():
            raise UserError(f"{folder} has no {CONFIG}; a folder written by save_pretrained does")
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            raise UserError(f"{path} is no config: it has {size} bytes, and {LARGEST_CONFIG} is the most that is read")
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON: {one_line(str(error))[:200]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not the arguments of a model by name")
    return config


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _built(cls: type, arguments: dict[str, Any], state: Mapping[str, Tensor], folder: Path) -> Any:
    """The model of a config, within what its weights allow: a config cannot ask for more time or memory than that."""
    path = folder / CONFIG
    try:
        with _at_most(len(state), sum(value.numel() for value in state.values())):
            return cls(**arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # what a constructor makes of values that it never expected
        reason = one_line(str(error))[:200] if isinstance(error, TypeError | ValueError | AssertionError) else ""
        reason = reason or f"{type(error).__name__} {one_line(str(error))[:200]}".rstrip()
        raise UserError(f"{path} does not describe a {cls.__name__}: {reason}") from error


@contextlib.contextmanager
def _at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Ends a constructor of this thread that makes far more parameters than these many tensors of these many numbers.

    A parameter is counted before its numbers are drawn, so the memory of one that is too large is never touched.
    """
    most_tensors, most_numbers = SPARE * tensors + 1000, SPARE * numbers + 1_000_000
    made, thread = [0, 0], threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        made[0], made[1] = made[0] + 1, made[1] + parameter.numel()
        if made[0] > most_tensors or made[1] > most_numbers:
            raise UserError(f"it describes a far larger model than {WEIGHTS} holds ({tensors} tensors)")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a temporary folder to write into; when the block ends well, its files are those of `folder`.

    The temporary folder lies beside `folder` and begins with what that holds, so other files of it stay. The two are
    exchanged in one step of the file system: whoever opens `folder` finds the old files or the new ones, whatever
    happens in between (exception, full disk, kill -9). Where two folders cannot be exchanged (a mount point, the
    present folder, a parent that may not be written, a system other than Linux) the new files, complete and written
    before, are renamed one after another.

    Raises:
        UserError: `cannot write <folder>: <reason>` for every failure of the file system.
    """
    target = Path(os.path.realpath(folder))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise UserError(f"cannot write {folder}: it is a file, and a folder is to be written there")
        temporary, beside = _temporary_folder(target)
        try:
            if beside and target.is_dir():
                shutil.copytree(target, temporary, copy_function=_link, symlinks=True, dirs_exist_ok=True)
                shutil.copystat(target, temporary)
            yield temporary
            for path in temporary.iterdir():
                if path.is_file():
                    _sync(path)
            _sync_folder(temporary)
            if not (beside and _exchanged(temporary, target)):
                for path in sorted(temporary.iterdir()):
                    if path.is_file():
                        os.replace(path, target / path.name)
            _sync_folder(target)
            if beside:
                _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def _temporary_folder(target: Path) -> tuple[Path, bool]:
    """An empty folder, and whether it lies beside the target (else inside); those of killed processes are removed."""
    places = [(target.parent, f"{target.name}.tmp-")]
    if target.is_dir():
        places.append((target, f".{target.name}.tmp-"))
        if Path.cwd().is_relative_to(target):  # would stay behind in the folder that is removed
            del places[0]
    for place, name in places:
        for old in place.glob(f"{name.replace('[', '[[]')}*"):
            found = STALE.search(old.name)
            if found and old.is_dir() and (int(found[1]) == os.getpid() or not _is_running(int(found[1]))):
                shutil.rmtree(old, ignore_errors=True)
        temporary = place / f"{name}{os.getpid()}"
        try:
            temporary.mkdir()
        except PermissionError:
            if (place, name) == places[-1]:
                raise
        else:
            return temporary, place == target.parent
    raise AssertionError("the last place either serves or raises")


def _link(source: str, target: str) -> None:
    """A second name for a file of the old folder; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _exchanged(temporary: Path, target: Path) -> bool:
    """Whether the folder took the target's place; an old one then bears the temporary name."""
    if not target.exists():
        os.rename(temporary, target)
        return True
    with contextlib.suppress(AttributeError, OSError):  # a C library without the call; a mount point
        at_present_folder, exchange = -100, 2
        rename = ctypes.CDLL(None).renameat2
        names = os.fsencode(temporary), os.fsencode(target)
        return rename(at_present_folder, names[0], at_present_folder, names[1], exchange) == 0
    return False


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
