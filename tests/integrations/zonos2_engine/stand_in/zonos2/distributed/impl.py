"""All-reduce by the last installed function."""


class DistributedCommunicator:
    plugins = ()

    def all_reduce(self, x):
        return self.plugins[-1].all_reduce(x)
