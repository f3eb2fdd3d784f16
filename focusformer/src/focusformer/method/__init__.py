"""The paper, one file per idea: the supernet of AutoFormer, and the sampler."""
