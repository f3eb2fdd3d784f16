"""What a binary student learns from its full-precision teacher.

Shapes: B batch, K classes; relations and hidden states are of any shape.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from paperkit.errors import UserError


def distribution_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ReActNet's loss, the only one of the paper: -mean over B of sum over K of softmax(teacher) log_softmax(student).

    Args:
        student, teacher: logits (B, K); temperature 1, no gradient to the teacher.

    Raises:
        UserError: different shapes.
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"logits {tuple(student.shape)} of the student do not fit {tuple(teacher.shape)} of the teacher"
        )
    return -(teacher.detach().softmax(-1) * F.log_softmax(student, -1)).sum(-1).mean()


def relations(x: Tensor) -> Tensor:
    """X X^T / sqrt(d) of queries, keys or values before the sign: (B, H, N, d) -> (B, H, N, N)."""
    return x @ x.mT / math.sqrt(x.shape[-1])


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|| S/||S|| - T/||T|| ||, Frobenius norms over the whole tensors (BiBERT's direction matching)."""
    teacher = teacher.detach()
    return torch.linalg.vector_norm(
        student / torch.linalg.vector_norm(student) - teacher / torch.linalg.vector_norm(teacher)
    )


def direction_matching(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """BiBERT's DMD: the sum of `direction_loss` over layers' relations and hidden states, weight 1.

    Raises:
        UserError: different numbers of tensors, or none.
    """
    if len(student) != len(teacher) or not student:
        raise UserError(f"{len(student)} tensors of the student and {len(teacher)} of the teacher to match")
    return torch.stack([direction_loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()
