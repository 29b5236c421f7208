"""tea_jax: post-training language models for how they are deployed.

Rewards of a group of rollouts go in, advantages come out; everything else exists to make the
rewards and to use the advantages.
"""

__version__ = "0.1.0"
