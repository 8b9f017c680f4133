"""Units sent back to pixels, through the windows that they see."""
