"""The end of a sequence and of its audio."""

from collections.abc import Iterable, Sequence

from torch import Tensor


class EndDetector:
    """Serial rule. The first frame with a code eoa_id sets eos_frame = max(step - highest such codebook, 0).

    The sequence then lasts C + 1 frames, that one included, in which the delayed codebooks finish. Later ends change
    nothing.
    """

    def __init__(self, eoa_id: int, max_frames: int, ignore_eos: bool = False) -> None:
        self.eoa_id, self.max_frames, self.ignore_eos = eoa_id, max_frames, ignore_eos
        self.step = 0
        self.eos_frame: int | None = None
        self.left: int | None = None  # frames left after the end

    def push(self, frame: Sequence[int]) -> bool:
        """Count one frame of codes. True: it is the last."""
        if self.eos_frame is None and not self.ignore_eos and self.eoa_id in frame:
            highest = max(c for c, code in enumerate(frame) if code == self.eoa_id)
            self.eos_frame, self.left = max(0, self.step - highest), len(frame) + 1
        self.step += 1
        if self.left is not None:
            self.left -= 1
        return self.left == 0 or self.step >= self.max_frames


def find_end(
    frames: Tensor | Iterable[Sequence[int]], eoa_id: int = 1024, max_frames: int = 1024, ignore_eos: bool = False
) -> tuple[int, int | None]:
    """frames [N, 9] -> (frames consumed, eos_frame or None); N frames if neither an end nor max_frames comes."""
    detector = EndDetector(eoa_id, max_frames, ignore_eos)
    for frame in frames.tolist() if isinstance(frames, Tensor) else frames:
        if detector.push(frame):
            break
    return detector.step, detector.eos_frame
