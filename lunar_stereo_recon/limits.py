"""Limits for everything that comes from outside: sizes, bytes, ratios and ranges.

Each bound is far beyond any rover's rig, and near enough that nothing within it exhausts memory
or leaves the range of float32.
"""

from __future__ import annotations

# Of an image, pixels.
MAX_SIDE_PX = 16_384
MAX_PIXELS = 2**26
# Deflate packs at most 1032 bytes into one. Small images may be packed closer, as two levels are.
MAX_PIXELS_PER_BYTE = 1100
SMALL_PIXELS = 2**22
# Focal lengths of a rectified rig, in longer sides of the image: 170 degrees of view to 0.06.
MIN_FOCAL_SIDES, MAX_FOCAL_SIDES = 0.04, 1000.0
# How far outside of the image a principal point may be, pixels: windows of a large sensor.
MAX_OFFSET_PX = MAX_SIDE_PX
MIN_BASELINE_M, MAX_BASELINE_M = 1e-4, 1e3
# The Moon's farthest horizon is nearer.
MAX_DEPTH_M = 1e5
# A smaller disparity says nothing: it is a hundredth of what matching is sure of.
MIN_DISPARITY_PX = 0.01
# Largest coefficient of a lens, of either sign.
MAX_DISTORTION = 1e4
# Seconds and nanoseconds of a stamp.
MAX_STAMP_S, MAX_STAMP_NS = 2**31 - 1, 999_999_999
# Of the name of a frame, characters.
MAX_NAME = 256
# Of the images of one side that wait for their partners, bytes: 5 of 12 megapixels in colour.
MAX_WAITING_BYTES = 3 * 2**26
# Frames that are known of /tf_static.
MAX_FRAMES = 10_000
# Of files, bytes. A calibration has about a kilobyte, the largest student of the paper 0.7 GB.
MAX_YAML_BYTES = 2**20
MAX_JSON_BYTES = 2**28
MAX_IMAGE_BYTES = 2**29
MAX_MODEL_BYTES = 2**30
# The official teacher has 2.75 GB; shards of our own checkpoints end at 16 MiB.
MAX_CHECKPOINT_BYTES = 2**33
MAX_SHARD_BYTES = 2**25
# Size of the arrays of a .npz file once unpacked; small ones may be packed closer.
MAX_ARRAYS_BYTES = 2**31
MAX_ARRAYS_RATIO = 200
SMALL_ARRAYS_BYTES = 2**26
# Largest part of an elevation model that is read, cells.
MAX_DEM_CELLS = 2**28
# Of a map that follows the rover, cells: about 50 bytes each.
MAX_MAP_CELLS = 2**22
# From the Moon's centre to its highest mountain would do.
MAX_HEIGHT_M = 1e7
# Limits of a YAML document: entries once aliases are followed, and brackets in brackets.
MAX_YAML_NODES = 20_000
MAX_YAML_DEPTH = 32
# Sizes of a compressed chunk of a bag, and of what it unpacks to.
MAX_CHUNK_BYTES = 2**29
MAX_CHUNK_RATIO = 1000
# Of layers and of channels in a network that a file asks for.
MAX_LAYERS, MAX_CHANNELS = 256, 2**16
