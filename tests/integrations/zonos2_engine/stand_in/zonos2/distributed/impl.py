"""Sums over the ranks, by whatever was put in last."""


class DistributedCommunicator:
    plugins = ()

    def all_reduce(self, x):
        return self.plugins[-1].all_reduce(x)
