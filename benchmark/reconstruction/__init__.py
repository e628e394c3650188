"""Audits by attacks whether images can be rebuilt from what an experiment lets leave a site.

One real round of one site is trained, and what leaves it is attacked as a curious server can: it follows the protocol,
keeps what it gets and computes what it likes. What the attacks rebuild is compared with the site's training images, and
with other images of the site that were not trained on, which are as near by chance.
"""
