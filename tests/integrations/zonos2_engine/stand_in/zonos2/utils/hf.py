"""The checkpoint's params.json."""


class Zonos2Config:
    def __init__(self, **given):
        vars(self).update(given)
