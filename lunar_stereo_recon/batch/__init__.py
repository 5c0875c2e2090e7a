"""Many recordings on many cores or machines: what `lunar-stereo batch` is made of."""
