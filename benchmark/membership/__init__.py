"""Audits by attacks whether the federation's model tells which images it was trained on.

Many models are trained, each on one half of every site's training images. Each in turn is the target of the attacks;
others are its shadows, models that an attacker could train and whose training images are known.
"""
