"""``backsight report``: every view of a photo on one page."""
