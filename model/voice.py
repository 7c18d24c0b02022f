"""Saved voices: a speaker embedding in a file, with where it came from."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zonos2_triton import __version__
from zonos2_triton._settings import local_path
from zonos2_triton.model.audio import read_audio
from zonos2_triton.model.files import whole_file
from zonos2_triton.model.speaker import SpeakerEncoder
from zonos2_triton.reference.numeric import isolated

ENDING = ".safetensors"
TENSOR = "speaker_embedding"
METADATA = "zonos2_triton.voice"  # one entry: safetensors writes several in random order


def is_voice(path: object) -> bool:
    """Whether a path names a saved voice, by its ending."""
    return isinstance(path, str | Path) and str(path).lower().endswith(ENDING)


@isolated()
def fingerprint(encoder: SpeakerEncoder) -> str:
    """SHA-256 of an encoder's weights."""
    digest = hashlib.sha256()
    for name in sorted(encoder.state):
        digest.update(name.encode())
        digest.update(encoder.state[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def make_voice(encoder: SpeakerEncoder, recording: str | Path, path: str | Path) -> dict[str, Any]:
    """Embed a recording and write the voice to `path`. Returns what the file says of its origin.

    ValueError: `path` does not end in .safetensors, or the recording cannot be embedded.
    """
    if not is_voice(path):
        raise ValueError(f"a voice file must end in {ENDING}, got {str(path)!r}")
    waveform, rate = read_audio(recording)
    source = local_path(recording)
    about = {
        "recording": source.name,
        "recording_sha256": hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None,
        "recording_s": round(waveform.shape[1] / rate, 3),
        "speaker_encoder_sha256": fingerprint(encoder),
        "speaker_encoder_notice": encoder.metadata.get("notice", ""),
        "made_by": f"zonos2-triton {__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = save({TENSOR: encoder.embed(waveform, rate).cpu()}, {METADATA: json.dumps(about)})
    with whole_file(path) as part:
        part.write_bytes(content)
    return about


def read_voice(path: str | Path, size: int | None = None, encoder: SpeakerEncoder | None = None) -> Tensor:
    """The embedding [D] of a saved voice. size: the D that the model takes.

    FileNotFoundError. ValueError: no voice file, one of another size, or one that another encoder than `encoder` made.
    """
    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"speaker: {path} is not a file")
    try:
        with safe_open(path, "pt") as file:
            names, stated = [*file.keys()], (file.metadata() or {}).get(METADATA)
            if stated is None or names != [TENSOR]:
                holds = ", ".join(names[:3]) or "nothing"
                raise ValueError(f"speaker: {path} must be a voice of `zonos2-triton voice make`, but holds {holds}")
            embedding, about = file.get_tensor(TENSOR), json.loads(stated)
    except SafetensorError as error:
        raise ValueError(f"speaker: {path} cannot be read: {error}") from error
    if embedding.dtype != torch.float32 or embedding.ndim != 1 or not bool(embedding.isfinite().all()):
        got = f"{embedding.dtype} {list(embedding.shape)}"
        raise ValueError(f"speaker: {path} must hold finite fp32 numbers [D], got {got}")
    if size is not None and len(embedding) != size:
        raise ValueError(f"speaker: {path} is a voice of another model: it has {len(embedding)} numbers, not {size}")
    made = about.get("speaker_encoder_sha256")
    if encoder is not None and made != (own := fingerprint(encoder)):
        raise ValueError(
            f"speaker: {path} is a voice of another model: its speaker encoder has SHA-256 {str(made)[:12]}, this "
            f"model's has {own[:12]}"
        )
    return embedding
