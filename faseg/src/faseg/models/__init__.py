"""Backbones, whole networks, the authors' weights, the doors of mmsegmentation."""
