"""Where a model lies: a folder first, the Hugging Face hub second."""

import re
from pathlib import Path

from zonos2_triton._settings import local_path

REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# What the released backbone is used with, and where each lies on the hub.
CODEC_REPO = "descript/dac_44khz"
SPEAKER_REPO = "marksverdhei/Qwen3-Voice-Embedding-12Hz-1.7B"

FILES = ["*.json", "*.safetensors", "*.pth", "*.pt"]


def resolve_path(name: str | Path) -> Path:
    """A local file or folder as it is; else the snapshot of a hub repository "owner/name", kept in its cache.

    HF_HUB_OFFLINE=1 keeps it from the network. FileNotFoundError: neither; ImportError: the hub extra is missing.
    """
    path = local_path(name)
    if path.exists():
        return path
    if not isinstance(name, str) or not REPO_ID.fullmatch(name):
        raise FileNotFoundError(f"{name} is neither a file or folder here nor a hub id of the form owner/name")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ImportError(
            f"{name} is no file or folder here; to fetch it from the hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))  # completes what is cached; offline, takes that
    except HFValidationError as error:
        raise FileNotFoundError(f"{name} is neither a file or folder here nor a valid hub id: {error}") from error
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is no file or folder here, not in the hub's cache, and cannot be fetched: {error}"
        ) from error
