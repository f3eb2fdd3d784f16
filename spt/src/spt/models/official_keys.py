"""Keys of the released SPT model (separate q, k, v; modules as siblings of their Linears) and ours."""

import re

from spt.method.candidates import QKV

_ATTENTION = re.compile(r"^(.*attn)\.(?:qkv\.)?(q|k|v|proj)\.structured\.(learnable\..*)$")
_MLP = re.compile(r"^(.*mlp)\.(fc1|fc2)\.structured\.(learnable\..*)$")
_RELEASED = re.compile(r"^(.*(?:attn|mlp))\.structured_(q|k|v|proj|fc1|fc2)\.(learnable\..*)$")


def released_key(name: str) -> str:
    """Ours -> released: `attn.qkv.q.structured.learnable.0.weight` -> `attn.structured_q.learnable.0.weight`."""
    for pattern in (_ATTENTION, _MLP):
        if found := pattern.match(name):
            return f"{found[1]}.structured_{found[2]}.{found[3]}"
    for part in QKV:
        name = name.replace(f".qkv.{part}.", f".{part}.")
    return name


def our_key(name: str) -> str:
    """Released -> ours, the inverse of `released_key`."""
    if found := _RELEASED.match(name):
        owner = f"{found[1]}.qkv" if found[2] in QKV else found[1]
        return f"{owner}.{found[2]}.structured.{found[3]}"
    return re.sub(r"(attn)\.(q|k|v)\.", r"\1.qkv.\2.", name)
