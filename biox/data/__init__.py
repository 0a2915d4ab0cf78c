"""Raw recordings to windows: readers, conditioning, cutting, splits; simulated recordings."""
