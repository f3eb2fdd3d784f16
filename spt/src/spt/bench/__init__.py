"""Speed and memory against the baselines."""
