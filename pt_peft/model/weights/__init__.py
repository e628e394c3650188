"""Backbone weights: where a site's file comes from, its format, its layout, and the model it is loaded into."""
