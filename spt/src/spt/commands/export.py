"""Merge a delta into its backbone and write a plain model: weights, a torch.export program or ONNX.

`--to peft` writes peft's own adapter and its base, `--to hub` the tuned model with its config in a folder.

`spt export --ckpt RUN --to onnx --file BACKBONE --output m.onnx`
"""

from typing import Any, Literal

SUFFIXES = {"weights": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx", "peft": "", "hub": ""}


def add_arguments(parser: Any) -> None:
    """Options."""
    from spt.commands.task_options import add_task_arguments

    add_task_arguments(parser)
    forms = Literal["weights", "torch_export", "onnx", "peft", "hub"]
    parser.add_argument("--to", type=forms, default="weights", help="form")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="file to write, a folder for peft and hub (default: in <root>/spt/export)",
    )


def run(arguments: Any) -> None:
    """Merges and writes."""
    from pathlib import Path

    from spt.deployment.task_model import delta_folder, described_backbone, open_task

    folder = delta_folder(arguments.ckpt, arguments.root)
    name = (folder.parent if folder.name == "delta" else folder).resolve().name
    target = Path(arguments.root) / "spt" / "export" / f"{name}-{arguments.to}{SUFFIXES[arguments.to]}"
    target = Path(arguments.output or target)
    tuned = open_task(folder, arguments.file, arguments.arch, arguments.trust_pickle, arguments.part)
    note = ""
    if arguments.to == "peft":
        from spt.deployment.peft_export import export_to_peft

        export_to_peft(tuned, target)
    elif arguments.to == "hub":
        from spt.models.delta import load_delta
        from spt.models.hub_model import SPTClassifier

        arch, sizes = described_backbone(load_delta(folder).extra, folder, arguments.arch)
        SPTClassifier.of(tuned, arch, sizes).save_pretrained(target)
    elif arguments.to == "weights":
        from paperkit.files.weights import save_weights

        save_weights(target, tuned.merge_and_unload().state_dict())
    else:
        from paperkit.export import export_onnx, export_program
        from spt.deployment.export import plain_example

        model = tuned.merge_and_unload().eval()
        write = export_program if arguments.to == "torch_export" else export_onnx
        note = f", largest difference from the model {write(model, plain_example(model), target):.2g}"
    print(f"written: {target}{note}")
