"""Linux, in its own words."""
