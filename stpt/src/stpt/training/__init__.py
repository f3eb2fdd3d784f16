"""The engine on real data, on mmengine, and what it reads."""
