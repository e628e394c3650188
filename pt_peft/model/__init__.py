"""The adapted Vision Transformer: backbone, weights, PEFT methods' machinery, and the adapter file."""
