"""Look at noise statistics, convert them, or compare two of them.

FILE is a safetensors file of this package, a folder of the authors' three files (kt.npy, t_std_dict.npy,
idx_bias.npy), or their list of predictions and errors (data_error_t_*.pth). --to writes a safetensors file, or the
authors' three files where it is no such name; --steps interpolates to another number of steps.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="safetensors file, folder of npy files, or list of pairs (.pth)")
    parser.add_argument("--to", type=str | None, default=None, help="file.safetensors, or folder for npy files")
    parser.add_argument("--compare", type=str | None, default=None, help="other statistics of the same steps")
    parser.add_argument("--steps", type=int | None, default=None, help="interpolate to this number of steps")
    parser.add_argument("--model", type=str, default="cin256-v2", help="whose noise schedule to interpolate along")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from paperkit.results.report import table
    from ptq4dm.method.noise_statistics import NoiseStatistics
    from ptq4dm.models.latent_diffusion import model_named
    from ptq4dm.models.official_statistics import read_official, statistics_of_pairs, write_official

    def read(name: str) -> NoiseStatistics:
        if Path(name).is_dir():
            return read_official(name)
        if Path(name).suffix in (".pth", ".pt"):
            return statistics_of_pairs(name, arguments.trust_pickle)
        return NoiseStatistics.load(name)

    found = read(arguments.source)
    if arguments.steps is not None:
        scheduler = model_named(arguments.model).scheduler()
        if not 1 <= arguments.steps <= len(scheduler.alphas_cumprod):
            raise UserError(f"--steps {arguments.steps} is outside 1 to {len(scheduler.alphas_cumprod)}")
        scheduler.set_timesteps(arguments.steps)
        found = found.interpolated(scheduler.timesteps, scheduler.alphas_cumprod)
    known = ", ".join(f"{key} {value}" for key, value in found.identity.items()) or "nothing known"
    names = ("k", "r", "residual_std", "snr")
    heads = ["t", "k", "r", "residual std", "SNR", "largest bias"]
    other = None if arguments.compare is None else read(arguments.compare)
    if other is not None:
        other.check_timesteps(found.timesteps)
        heads += [f"{name} of the other" for name in ("k", "residual std")]
    rows = []
    for i, t in enumerate(found.timesteps.tolist()):
        numbers = [float(getattr(found, name)[i]) for name in names] + [float(found.bias[i].abs().max())]
        if other is not None:
            numbers += [float(other.k[i]), float(other.residual_std[i])]
        rows.append([t, *(f"{number:.4g}" for number in numbers)])
    table(rows, heads, f"{arguments.source}: {known}")
    if arguments.to is not None:
        if arguments.to.endswith(".safetensors"):
            found.save(arguments.to)
        else:
            write_official(arguments.to, found)
        print(arguments.to)
    return 0
