"""A user's model as a function of images, captured and remembered."""
