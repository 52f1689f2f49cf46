"""Where petavoxel runs and where its data lives: Ray, buckets and inference engines; no neuroscience."""
