"""Can it be told from the federation's model which images it was trained on? An audit by attacks.

Many models are trained, each on one half of every site's training images. Each in turn is the target of the attacks, and others
are its shadows: models that an attacker could train, and of which it is known what they were trained on.
"""
