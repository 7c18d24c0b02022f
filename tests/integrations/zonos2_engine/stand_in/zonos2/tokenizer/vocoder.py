"""Loads the codec once."""

_dac_model = None


def _get_dac():
    assert _dac_model is not None, "this stand-in loads nothing"
    return _dac_model
