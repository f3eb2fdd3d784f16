"""Class names of the data sets, in the order of the network's outputs: the first is output 1, 0 is the background."""

THUMOS14: dict[str, int] = {
    "BaseballPitch": 7, "BasketballDunk": 9, "Billiards": 12, "CleanAndJerk": 21, "CliffDiving": 22,
    "CricketBowling": 23, "CricketShot": 24, "Diving": 26, "FrisbeeCatch": 31, "GolfSwing": 33, "HammerThrow": 36,
    "HighJump": 40, "JavelinThrow": 45, "LongJump": 51, "PoleVault": 68, "Shotput": 79, "SoccerPenalty": 85,
    "TennisSwing": 92, "ThrowDiscus": 93, "VolleyballSpiking": 97,
}  # fmt: skip
"""Name -> number in UCF101, which THUMOS14's own files use."""

AMBIGUOUS = "Ambiguous"
"""THUMOS14's mark for what is no clear instance of any class; such rows are left out."""

ANY_ACTION = "action"
"""The only class of ActivityNet's detector, which tells actions from background."""
