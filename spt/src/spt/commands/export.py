"""Merge a delta into its backbone and write a plain model: weights, torch.export, ONNX; or peft's own adapter and its
base; or the tuned model with its config in a folder (huggingface_hub's layout).

`spt export DELTA OUT --file BACKBONE --to onnx`
"""

from __future__ import annotations

from typing import Any, Literal


def add_arguments(parser: Any) -> None:
    """Options."""
    from spt.commands.task_options import add_task_arguments

    parser.add_argument("delta", type=str, help="delta folder (RUN/delta)")
    parser.add_argument("target", type=str, help="file to write; a folder for peft and hub")
    forms = Literal["weights", "torch_export", "onnx", "peft", "hub"]
    parser.add_argument("--to", type=forms, default="weights", help="form")
    add_task_arguments(parser)


def run(arguments: Any) -> None:
    """Merges and writes."""
    from spt.deployment.export import save_exported, save_onnx, save_plain
    from spt.deployment.task_model import open_task

    tuned = open_task(arguments.delta, arguments.file, arguments.arch, arguments.trust_pickle)
    if arguments.to == "peft":
        from spt.deployment.peft_export import export_to_peft

        export_to_peft(tuned, arguments.target)
    elif arguments.to == "hub":
        from spt.deployment.task_model import described_backbone
        from spt.models.delta import load_delta
        from spt.models.hub_model import SPTClassifier

        arch, sizes = described_backbone(load_delta(arguments.delta).extra, arguments.delta, arguments.arch)
        SPTClassifier.of(tuned, arch, sizes).save_pretrained(arguments.target)
    else:
        save = {"weights": save_plain, "torch_export": save_exported, "onnx": save_onnx}[arguments.to]
        save(tuned.merge_and_unload().eval(), arguments.target)
    print(f"written: {arguments.target}")
