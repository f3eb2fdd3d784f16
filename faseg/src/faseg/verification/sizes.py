"""Sizes that a reference file's config says, held against its tensors."""

from collections.abc import Mapping

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile


def check_said(file: ReferenceFile, found: Mapping[str, object]) -> None:
    """Raises a UserError for the first option of `found` that the config has with another value.

    Args:
        found: what the tensors have, by the option's name.
    """
    for name, value in found.items():
        if name in file.config and file.config[name] != value:
            raise UserError(f"config.{name} is {file.config[name]}; the tensors have {value}")
