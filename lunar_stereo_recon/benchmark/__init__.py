"""What `lunar-stereo bench` measures: pairs, degradations, methods, statistics, tables."""
