"""Training and evaluation of one site."""
