"""Whole networks, released weights of the detector, the doors of mmengine and mmaction."""
