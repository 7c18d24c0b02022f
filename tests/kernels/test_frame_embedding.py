from tests.kernels.operator_suite import OperatorTests, at, odd_width, wrong

FRAMES = {"M": 64, "D": 128, "columns": 10, "V": 64, "text": 20, "voices": 2}


class TestFrameEmbedding(OperatorTests):
    name = "frame_embedding"
    forms = ["no-norm"]
    fullest = "speakers"
    accuracy = [FRAMES]
    costs = {
        # ten rows of 2048 and the next norm's weight read, two written, of two bytes; ten ids, 128 sums
        "decode-B1": (13 * 2048 * 2 + (10 + 128) * 4, 13 * 2048),
        # of 64 rows the same; nothing is squared, and nothing scaled
        "no-norm-B64": (64 * (11 * 2048 * 2 + 10 * 4), 64 * 10 * 2048),
    }
    wrong = [
        wrong(r"speaker_index must have shape \[M=5\]", speaker_index=lambda i: i[:4]),
        wrong(r"ids of codes must be in 0\.\.10, .*; got 11", ids=at((1, 2), 11)),
        wrong(r"ids of text must be in 0\.\.6, .*; got 7", ids=at((1, -1), 7)),
        wrong(r"speaker_index must be in .*\.\.1, .*; got 2", speaker_index=at(0, 2)),
        wrong("table must hold more than 9 codebooks of codebook_vocab=12 rows, got 106", codebook_vocab=12),
        wrong("table must hold more than 9 codebooks", codebook_vocab=0),
        wrong("speakers and speaker_index must be given together", speakers=None),
        wrong("speakers and speaker_index must be given together", speaker_index=None),
        *odd_width("D", 50),
    ]
