"""What a result depends on besides the code: library versions, threads, processor, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "safetensors", "scikit-learn"),
    *("jsonargparse", "matplotlib", "diffusers", "peft", "onnx", "onnxruntime"),
    *("onedl-mmengine", "onedl-mmsegmentation", "mmcv-lite", "mmcv", "mmaction2", "paperkit"),
)
CPU_FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16")


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that results depend on, by distribution name, and of Python."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def torch_threads() -> int:
    """Threads of one torch operation. Weights are bit-identical only between runs with the same number."""
    import torch  # late: a command's help must not wait for it

    return torch.get_num_threads()


def cpu() -> dict[str, Any]:
    """The processor: model name, the number of cores this process may use, and its vector instruction sets."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    flags = lines.get("flags", lines.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": lines.get("model name", platform.processor() or platform.machine()),
        "cores": cores,
        "flags": sorted(flag for flag in flags if flag in CPU_FLAGS or flag.startswith(("avx512", "amx", "sve"))),
    }


def git_commit() -> str | None:
    """The commit of the sources in use, `+changes` added when tracked files differ from it; None outside git."""
    folder = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def environment() -> dict[str, Any]:
    """Everything of the above, as it stands in a run's `env.json`."""
    return {
        "command": sys.argv,
        "versions": library_versions(),
        "threads": torch_threads(),
        "cpu": cpu(),
        "platform": platform.platform(),
        "commit": git_commit(),
    }
