"""Files of tensors."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zonos2_triton.model.files import whole_file


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A file of safetensors that appears whole; OSError: it cannot be written."""
    try:
        with whole_file(path) as part:
            mode = part.stat().st_mode
            save_file(tensors, part, metadata)
            part.chmod(mode)  # safetensors makes files that others cannot read
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"cannot write {path}: {error}") from error
