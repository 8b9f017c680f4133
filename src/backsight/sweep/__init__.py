"""Push occlusions forward: only the windows they change."""
