"""Part C's task: the majority sign of the tokens that belong to the first token's cluster.

Four random prototypes, new in every sample, so that nothing can be learned by heart. A token alone knows nothing
(50 %); the mean of all values, blind to clusters, is right in two of three samples.

Shapes: B samples, N tokens, D features.
"""

import torch
from torch import Tensor

PROTOTYPES, TOKENS, FEATURES = 4, 32, 16
SPREAD, SCALE, FLIPPED = 0.5, 4.0, 0.2


def sample_majority(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, D + 1) and labels (B,) in {0, 1}.

    A token is a noisy copy of a prototype on the sphere, times 4, and its prototype's sign, flipped with probability
    0.2. Token 0 has 0 for a sign; its prototype's is the label.
    """
    prototypes = torch.nn.functional.normalize(torch.randn(count, PROTOTYPES, FEATURES, generator=generator), dim=-1)
    signs = 2.0 * torch.randint(2, (count, PROTOTYPES), generator=generator) - 1
    member = torch.randint(PROTOTYPES, (count, TOKENS), generator=generator)
    noise = torch.randn(count, TOKENS, FEATURES, generator=generator) * SPREAD / FEATURES**0.5
    noisy = prototypes.gather(1, member[..., None].expand(-1, -1, FEATURES)) + noise
    flips = 1 - 2.0 * (torch.rand(count, TOKENS, generator=generator) < FLIPPED)
    values = signs.gather(1, member) * flips
    values[:, 0] = 0
    tokens = torch.cat([SCALE * torch.nn.functional.normalize(noisy, dim=-1), values[..., None]], -1)
    return tokens, (signs.gather(1, member[:, :1]).squeeze(1) > 0).long()
