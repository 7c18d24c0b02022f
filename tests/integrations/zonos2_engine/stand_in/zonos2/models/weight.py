"""One rank's part of a checkpoint."""

from zonos2.distributed import info

AXES = {
    ".temp": 1, ".wq.": 0, ".wkv.": 1, ".gater.": 0, ".wo.": 1, ".w_in.": 1, ".w_out.": 1, ".w13": 1, ".w2": 2,
    ".embedders.": 0,
}  # fmt: skip


def _shard_state_dict(tensors):
    rank, ranks = info._TP_INFO.rank, info._TP_INFO.size
    axes = {name: next((axis for part, axis in AXES.items() if part in name), None) for name in tensors}
    return {name: t if axes[name] is None else t.chunk(ranks, axes[name])[rank] for name, t in tensors.items()}
