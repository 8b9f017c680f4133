"""The methods, one file each; their public names live at the top of the package."""
