"""Why depth is bad on a rig: what `lunar-stereo doctor` measures, one module for each kind.

`collect` brings a recording or two files into one form, `examination` runs the checks in order,
`page` says what they found. Nothing here needs ROS: a node can hand in what it receives.
"""
