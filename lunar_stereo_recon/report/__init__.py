"""What `lunar-stereo evaluate` and `compare` measure and show: sources, results, charts, pages."""
