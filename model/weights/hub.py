"""The location of a model: a folder, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from zonos2_triton._settings import local_path

REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# Repositories of the codec and the speaker encoder that the released backbone uses.
CODEC_REPO = "descript/dac_44khz"
SPEAKER_REPO = "marksverdhei/Qwen3-Voice-Embedding-12Hz-1.7B"

FILES = ["*.json", "*.safetensors", "*.pth", "*.pt"]


def resolve_path(name: str | Path) -> Path:
    """A local file or folder as it is, or the cached snapshot of a hub repository "owner/name".

    HF_HUB_OFFLINE=1 forbids the network. FileNotFoundError: neither. ImportError: huggingface_hub is missing.
    """
    path = local_path(name)
    if path.exists():
        return path
    if not isinstance(name, str) or not REPO_ID.fullmatch(name):
        raise FileNotFoundError(f"{name} is neither a file or folder here nor a hub id of the form owner/name")
    absent = f"{name} is no file or folder here"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ImportError(f"{absent}; to fetch it from the hub: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))  # offline it returns the cache
    except HFValidationError as error:
        raise FileNotFoundError(f"{name} is neither a file or folder here nor a valid hub id: {error}") from error
    except Exception as error:
        raise FileNotFoundError(f"{absent}, not in the hub's cache, and cannot be fetched: {error}") from error
