"""The check of a site before it joins: whether its images are in order, and what a round will cost it."""
