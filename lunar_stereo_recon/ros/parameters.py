"""Parameters of the nodes, declared once: default, description, unit, range, when they act.

A node's parameters are a frozen dataclass. Declaring, reading and checking changes are derived
from its fields (`node_parameters`), and so are the launch arguments, `config/reconstruction.yaml`
and the tables of the documentation (`docs/make_parameter_docs.py`). A parameter is added by adding
a field. Nothing here needs ROS.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
import math
from typing import Any

from lunar_stereo_recon.datatypes import Region
from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.geometry.hazard import GridLayout, HazardOptions
from lunar_stereo_recon.geometry.terrain import TerrainOptions
from lunar_stereo_recon.pipeline import ReconstructionOptions
from lunar_stereo_recon.result_messages import CloudForm

OUTPUTS = ('points2', 'confidence', 'disparity', 'depth', 'hazard', 'image')
SAVE_FORMATS = ('ply', 'pcd')
GRAVITIES = ('tf', 'imu', 'fixed')
TEMPORAL = ('off', 'odometry', 'pose', 'tf')
POSE_SOURCES = ('odometry', 'pose', 'tf')
RELIABILITIES = ('auto', 'reliable', 'best_effort')
DEPTH_ENCODINGS = ('32FC1', '16UC1')
TRANSPORTS = ('raw', 'compressed')
VIEWERS = ('none', 'rerun')
# Smaller voxels would be too many to number in a cloud of kilometres.
MIN_VOXEL_M = 0.005


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = '',
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    dynamic: bool = False,
) -> Any:
    """Return a dataclass field that is a ROS parameter.

    Args:
        default: Value where none is given; its type is the parameter's type.
        description: Sentences for a user who sees nothing else. The first one says what the
            parameter sets. Backticks mark names; only Markdown shows them.
        unit: Unit of the value, '' where it has none.
        minimum: Smallest value allowed, of a number.
        maximum: Largest value allowed, of a number.
        choices: Allowed texts, of a text or of the elements of a list.
        dynamic: True where a change acts on the next frame; otherwise it can only be set at start.
    """
    metadata = {
        'description': description,
        'unit': unit,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
        'dynamic': dynamic,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(item: dataclasses.Field[Any]) -> Any:
    """Return a parameter's value where none is given."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def help_text(item: dataclasses.Field[Any]) -> str:
    """Return a parameter's description and unit as plain text."""
    unit = f' [{item.metadata["unit"]}]' if item.metadata['unit'] else ''
    return item.metadata['description'].replace('`', '') + unit


def check_value(item: dataclasses.Field[Any], value: Any, name: str) -> None:
    """Refuse a value that the node would refuse, under the name that its user gave it.

    Raises:
        InputError: It is not one of the choices, or outside of the range.
    """
    about = item.metadata
    if about['choices'] and value not in about['choices']:
        known = ', '.join(about['choices'])
        raise InputError(f'{name} is {quoted(str(value))}; one of {known} is needed')
    low, high = about['minimum'], about['maximum']
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        unit = f' {about["unit"]}' if about['unit'] else ''
        limits = f'at least {low:g}' if high is None else f'{low:g} to {high:g}{unit}'
        raise InputError(f'{name} is {value:g}; {limits} is needed')


def named(values: list[str]) -> list[str]:
    """Return a list parameter without the empty texts that stand for an empty list.

    A launch file or YAML cannot give an empty list a type.
    """
    return [value for value in values if value]


_SET_MODEL = 'A change acts when the service `~/set_model` is called.'


@dataclass(frozen=True)
class ReconstructionParameters:
    """Parameters of the reconstruction node."""

    autostart: bool = parameter(
        True,
        'Configure and activate the node at start. If false, the node waits for a lifecycle '
        'manager.',
    )
    # A change of these three acts when ~/set_model is called: loading takes time, and may fail.
    backend: str = parameter(
        'onnx',
        'Matcher that finds the disparity: `onnx` and `openvino` run the student network, `auto` '
        'takes the faster of them, measured when the node is configured; `sgbm`, '
        f'`sgbm_hh` and `bm` are matchers of OpenCV. {_SET_MODEL}',
        choices=('onnx', 'openvino', 'auto', 'sgbm', 'sgbm_hh', 'bm'),
        dynamic=True,
    )
    model: str = parameter(
        '',
        'Model file of the student network: a path, or the name of a shipped model, `flight` or '
        '`flight_int8` (the latter only with the backend `onnx`). Empty is `flight`. '
        f'{_SET_MODEL}',
        dynamic=True,
    )
    model_key: str = parameter(
        '',
        'File with the public key (PEM) of the signature that the model file must have. The '
        'signature lies beside the model file as `NAME.onnx.sig`. Empty asks for no signature.',
    )
    providers: list[str] = parameter(
        [''],
        'Execution providers of the backend `onnx` in order of preference, out of `tensorrt`, '
        f'`cuda` and `cpu`. Empty is the CPU. {_SET_MODEL}',
        dynamic=True,
    )
    threads: int = parameter(
        0,
        'Number of threads of matcher and refinement. 0 leaves the number to the runtime.',
        minimum=0,
        maximum=256,
    )
    approximate_sync: bool = parameter(
        False,
        'Pair left and right images whose stamps differ slightly, by up to '
        '`approximate_sync_tolerance_seconds`. If false, the stamps must be equal.',
    )
    approximate_sync_tolerance_seconds: float = parameter(
        0.01,
        'Largest difference between the stamps of a left and a right image that become a pair, '
        'if `approximate_sync` is true.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )
    queue_size: int = parameter(
        5,
        'Number of images of one camera that may wait for the image of the other camera.',
        minimum=1,
        maximum=1000,
    )
    input_transport: str = parameter(
        'raw',
        'Message type of the input images: `raw` subscribes to Image, `compressed` subscribes to '
        'CompressedImage on the topics `.../compressed`.',
        choices=TRANSPORTS,
    )
    input_reliability: str = parameter(
        'auto',
        'Reliability that the image subscriptions ask for: `reliable`, `best_effort`, or `auto`, '
        'which follows what the publishers offer.',
        choices=RELIABILITIES,
    )
    rectify: bool = parameter(
        False,
        'The images are raw, and the node rectifies them. It then subscribes to `left/image_raw` '
        'and `right/image_raw`, and uses D, K, R and P of the camera_infos.',
    )
    detect_raw: bool = parameter(
        True,
        'Rectify images that look raw, also if `rectify` is false. Images look raw if the '
        'camera_info has distortion and no image topic has `rect` in its name. If false, such '
        'images are used as they are.',
        dynamic=True,
    )
    left_camera_info_url: str = parameter(
        '',
        'YAML file with the camera_info of the left camera, for a camera that publishes none: a '
        'path, `file://` or `package://`. Empty uses the topic `left/camera_info`.',
    )
    right_camera_info_url: str = parameter(
        '',
        'YAML file with the camera_info of the right camera, for a camera that publishes none: a '
        'path, `file://` or `package://`. Empty uses the topic `right/camera_info`.',
    )
    cache_camera_info: bool = parameter(
        False,
        'Keep the first camera_info of each camera and ignore all later ones.',
    )
    baseline: float = parameter(
        0.0,
        'Distance between the two cameras; 0 takes it from `P[3]` of the right camera_info. If '
        'that gives none either, the distance of the camera frames on `/tf_static` is used.',
        unit='m',
        minimum=0.0,
        maximum=100.0,
        dynamic=True,
    )
    white_level: float = parameter(
        0.0,
        'Image value of white, for example 4095 for 12-bit data in mono16. 0 takes the largest '
        'value of the image encoding.',
        minimum=0.0,
        maximum=65535.0,
        dynamic=True,
    )
    confidence_threshold: float = parameter(
        0.5,
        'Points with a lower confidence become NaN. The confidence of a point is the probability '
        'that its disparity is right to one pixel.',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    min_range: float = parameter(
        0.0,
        'Points that are nearer become NaN. The distance is measured along the optical axis.',
        unit='m',
        minimum=0.0,
        maximum=1e6,
        dynamic=True,
    )
    max_range: float = parameter(
        0.0,
        'Points that are farther away become NaN; 0 sets no limit. The distance is measured along '
        'the optical axis.',
        unit='m',
        minimum=0.0,
        maximum=1e6,
        dynamic=True,
    )
    refine: bool = parameter(
        True,
        "Match the images at their full size around the network's disparity: for small things and "
        'borders that the network lost, and for sub-pixel precision.',
        dynamic=True,
    )
    align_rows: bool = parameter(
        True,
        'Measure how well the rows of the two images are aligned, and correct the right image by '
        'up to 2 pixels. `/diagnostics` says when to calibrate the cameras again.',
        dynamic=True,
    )
    temporal: str = parameter(
        'off',
        'Steady each frame by the one before, moved by the poses of: `odometry`, the topic `odom` '
        '(Odometry); `pose`, the topic `pose` (PoseStamped of the left optical frame); `tf`, TF '
        'from `odom`. `off` takes each frame by itself. Poses must be exact to about 0.02 degrees '
        'from frame to frame; with others, frames before are left out, and `frame_status` says '
        'why.',
        choices=TEMPORAL,
    )
    target_ms: float = parameter(
        0.0,
        'Time that a pair may take; a narrower network input saves time and loses detail. The '
        'widest input (640, 480 or 320 pixels) that keeps to the time is chosen on the first '
        'pair; under load it becomes narrower, and pairs are left out. 0 sets no time and uses '
        '640 pixels. Images are scaled to the chosen width, up or down, but images narrower than '
        '360 pixels are never scaled up.',
        unit='ms',
        minimum=0.0,
        maximum=10000.0,
        dynamic=True,
    )
    outputs: list[str] = parameter(
        list(OUTPUTS),
        'Results to publish. They are `points2`, `confidence`, `disparity`, `depth`, `hazard` and '
        '`image`, which is the rectified left image and needs `rectify`.',
        choices=OUTPUTS,
        dynamic=True,
    )
    roi: list[int] = parameter(
        [0, 0, 0, 0],
        'Region of interest in the left image: x, y, width, height. Points outside become NaN, '
        'and the cloud holds the region alone. Four zeros are the whole image.',
        unit='px',
        dynamic=True,
    )
    self_mask: str = parameter(
        '',
        'Parts of the rover in the left image, which get no points: path of an image in which '
        'they are not black, as `lunar-stereo mask` makes it, or a polygon '
        '`[[x, y], [x, y], ...]` in pixels. The mask belongs to the rectified image; one of '
        'another size is scaled if the ratio of its sides is the same, and refused otherwise.',
    )
    self_mask_right: str = parameter(
        '',
        'Parts of the rover in the right image, as `self_mask`. Nothing is matched with them.',
    )
    organized: bool = parameter(
        True,
        'Publish an organised cloud, which has one point for each pixel and NaN where it is '
        'invalid. If false, the cloud has the valid points in one row.',
        dynamic=True,
    )
    voxel_size: float = parameter(
        0.0,
        'Edge of the cubes (voxels) by which the cloud is thinned: the points in one cube become '
        'their mean, and the cloud is not organised. 0 keeps all points; the smallest edge is '
        f'{MIN_VOXEL_M} m.',
        unit='m',
        minimum=0.0,
        maximum=10.0,
        dynamic=True,
    )
    color: bool = parameter(
        True, 'Give each point of the cloud its colour, in the field `rgb`.', dynamic=True
    )
    sigma: bool = parameter(
        False,
        'Give each point of the cloud one standard deviation of its depth, in metres, in the '
        'field `sigma`. It is NaN where the model cannot tell.',
        dynamic=True,
    )
    cloud_frame: str = parameter(
        '',
        'Frame of the cloud, for example `base_link`; empty is the left optical frame. TF must '
        'lead from the optical frame to the frame that is named.',
        dynamic=True,
    )
    decimation: int = parameter(
        1,
        'Keep every n-th row and column of the cloud. The published images keep their size.',
        minimum=1,
        maximum=64,
        dynamic=True,
    )
    depth_encoding: str = parameter(
        '32FC1',
        'Encoding of the depth image: `32FC1` is in metres, with NaN where invalid; `16UC1` is in '
        'millimetres, with 0 where invalid.',
        choices=DEPTH_ENCODINGS,
        dynamic=True,
    )
    hazard_gravity: str = parameter(
        'tf',
        'Source of the direction of gravity for the hazard grid: `tf` uses `hazard_frame`; `imu` '
        'uses the topic `imu` and `camera_pitch`; `fixed` uses `camera_pitch` alone and takes the '
        'ground under the rover for level.',
        choices=GRAVITIES,
        dynamic=True,
    )
    hazard_frame: str = parameter(
        'odom',
        'Frame of the hazard grid if `hazard_gravity` is `tf`. Its z axis must point up.',
        dynamic=True,
    )
    camera_pitch: float = parameter(
        0.0,
        "Pitch of the camera in the rover's body, for the hazard grid if `hazard_gravity` is "
        '`imu` or `fixed`. Negative values look down.',
        unit='deg',
        minimum=-90.0,
        maximum=90.0,
        dynamic=True,
    )
    hazard_range: float = parameter(
        10.0,
        'Distance from the camera to which the hazard grid reaches.',
        unit='m',
        minimum=0.5,
        maximum=200.0,
        dynamic=True,
    )
    hazard_cell: float = parameter(
        0.2,
        'Edge of one cell of the hazard grid.',
        unit='m',
        minimum=0.02,
        maximum=10.0,
        dynamic=True,
    )
    hazard_clearance: float = parameter(
        0.3,
        'Height of a step that the hazard grid marks as not drivable: the ground clearance of the '
        'rover. Steps come out lower than they are, and are marked from nine tenths of it.',
        unit='m',
        minimum=0.01,
        maximum=10.0,
        dynamic=True,
    )
    hazard_max_slope: float = parameter(
        20.0,
        'Slope that the hazard grid marks as not drivable.',
        unit='deg',
        minimum=1.0,
        maximum=80.0,
        dynamic=True,
    )
    hazard_footprint: float = parameter(
        1.0,
        'Edge of the square of ground over which the hazard grid measures slope: about the size '
        'of the rover.',
        unit='m',
        minimum=0.1,
        maximum=20.0,
        dynamic=True,
    )
    hazard_confidence: float = parameter(
        0.5,
        'Points with a lower confidence do not count in the hazard grid, and neither do points '
        'below `confidence_threshold`.',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    allow_saving: bool = parameter(
        True,
        'Let the services `~/save_cloud` and `~/doctor` write files. If false, there is no '
        'service `~/save_cloud`, and `~/doctor` answers with text only.',
    )
    save_root: str = parameter(
        '.',
        'Folder in which, and below which, the services of the node may write files. A relative '
        'path starts at the folder in which the node was started.',
    )
    save_directory: str = parameter(
        '.',
        'Folder in which the services `~/save_cloud` and `~/doctor` write their files. A relative '
        'path starts at `save_root`; a folder that is not below `save_root` is refused.',
        dynamic=True,
    )
    save_format: str = parameter(
        'ply',
        'File format in which the service `~/save_cloud` writes clouds: `ply` or `pcd`.',
        choices=SAVE_FORMATS,
        dynamic=True,
    )
    viewer: str = parameter(
        'none',
        'Show the newest results in this viewer, on the machine of the node: `rerun` opens a '
        'window with images, depth, confidence and cloud, or writes `viewer_file`. It needs '
        'rerun-sdk (extra [viewer]). The node works for it as for a subscriber.',
        choices=VIEWERS,
    )
    viewer_file: str = parameter(
        '',
        'Recording (.rrd) that is written instead of opening a window, if `viewer` is `rerun`. '
        'It takes about 5 MB a frame of 640x480; one that is there is replaced.',
    )
    lazy: bool = parameter(
        True,
        'Receive and reconstruct images only while somebody subscribes to a result.',
        dynamic=True,
    )
    target_rate: float = parameter(
        0.0,
        'Largest number of pairs to reconstruct per second, counted by their stamps. 0 '
        'reconstructs every pair.',
        unit='Hz',
        minimum=0.0,
        maximum=1000.0,
        dynamic=True,
    )
    fallback_after: int = parameter(
        3,
        'Number of failures in a row after which a simpler matcher takes over: the network on '
        'the CPU, then `sgbm`. 0 never changes the matcher. The service `~/set_model` returns to '
        'the chosen one.',
        minimum=0,
        maximum=1000,
        dynamic=True,
    )
    self_test_period: float = parameter(
        60.0,
        'Seconds after which the next pair waits until student and chooser have answered their '
        'pair with a known answer again: a bit of their weights may have flipped in memory. What '
        'fails is loaded anew, or else a simpler matcher takes over. OpenVINO would compile the '
        'student anew, so there only the chooser is tested. 0 tests them only when loaded.',
        unit='s',
        minimum=0.0,
        maximum=86400.0,
        dynamic=True,
    )
    watchdog: float = parameter(
        30.0,
        'Time in the work on one pair after which the matcher counts as stuck and a simpler one '
        'takes over. 0 waits without limit.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        dynamic=True,
    )
    watchdog_first: float = parameter(
        600.0,
        'Time in the work on the first pair of an image size or network width after which the '
        'matcher counts as stuck. A runtime may compile the network for this pair, which takes '
        'minutes with TensorRT. 0 waits without limit.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        dynamic=True,
    )
    silence_warning: float = parameter(
        5.0,
        'Time without a result after which a warning in the log says why there is none. 0 never '
        'warns.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        dynamic=True,
    )

    def __post_init__(self) -> None:
        """Check what concerns more than one parameter.

        Raises:
            InputError: min_range and max_range exclude each other, `roi` is no region, voxels
                are too small, or the hazard grid would have too many cells.
        """
        if 0 < self.voxel_size < MIN_VOXEL_M:
            raise InputError(
                f'parameter voxel_size is {self.voxel_size:g} m; 0 or at least {MIN_VOXEL_M} m is '
                'needed'
            )
        cells = 2 * math.ceil(self.hazard_range / self.hazard_cell)
        GridLayout(0.0, 0.0, cells, cells, self.hazard_cell)
        self.options  # noqa: B018 (building them checks them)

    @property
    def options(self) -> ReconstructionOptions:
        """Return the pipeline's options."""
        return ReconstructionOptions(
            confidence_threshold=self.confidence_threshold,
            min_range_m=self.min_range,
            max_range_m=self.max_range or math.inf,
            refine=self.refine,
            align_rows=self.align_rows,
            region=self.region,
            target_ms=self.target_ms,
            temporal=self.temporal != 'off',
        )

    @property
    def region(self) -> Region | None:
        """Return the region of interest; None where it is the whole image.

        Raises:
            InputError: `roi` is no region.
        """
        if len(self.roi) != 4:
            raise InputError(
                f'parameter roi has {len(self.roi)} numbers; x, y, width, height are needed'
            )
        return Region(*self.roi) if any(self.roi) else None

    @property
    def hazard_options(self) -> HazardOptions:
        """Return what the rover can do."""
        return HazardOptions(self.hazard_clearance, self.hazard_max_slope, self.hazard_footprint)

    @property
    def cloud_form(self) -> CloudForm:
        """Return how the cloud is given."""
        return CloudForm(self.decimation, self.organized, self.voxel_size, self.color, self.sigma)

    @property
    def tolerance_ns(self) -> int:
        """Return the largest difference of the stamps of a pair, nanoseconds."""
        seconds = self.approximate_sync_tolerance_seconds if self.approximate_sync else 0.0
        return round(seconds * 1e9)


@dataclass(frozen=True)
class SimulatorParameters:
    """Parameters of the simulator node."""

    preset: str = parameter(
        'mare',
        'Kind of lunar ground: `mare`, `highland`, `south_pole`, `boulder_field` or `smooth`.',
    )
    seed: int = parameter(
        0,
        'Seed of everything random: ground, rocks and image noise.',
        minimum=0,
        maximum=2**31 - 1,
    )
    width: int = parameter(
        640, 'Width of the simulated images.', unit='px', minimum=64, maximum=4096
    )
    height: int = parameter(
        480, 'Height of the simulated images.', unit='px', minimum=64, maximum=4096
    )
    focal_length: float = parameter(
        0.72,
        'Focal length of the simulated cameras, divided by the image width.',
        minimum=0.2,
        maximum=5.0,
    )
    baseline: float = parameter(
        0.3,
        'Distance between the two simulated cameras.',
        unit='m',
        minimum=0.01,
        maximum=2.0,
    )
    camera_height: float = parameter(
        1.4,
        'Height of the simulated cameras above the ground.',
        unit='m',
        minimum=0.1,
        maximum=5.0,
    )
    camera_pitch: float = parameter(
        -16.0,
        'Pitch of the simulated cameras. Negative values look down.',
        unit='deg',
        minimum=-89.0,
        maximum=60.0,
    )
    sun_elevation: float = parameter(
        0.0,
        'Elevation of the sun above the horizon. 0 takes the elevation that is typical of the '
        '`preset`.',
        unit='deg',
        minimum=-90.0,
        maximum=90.0,
    )
    sun_azimuth: float = parameter(
        115.0,
        'Azimuth of the sun, counterclockwise from the x axis of the frame `map`.',
        unit='deg',
        minimum=-360.0,
        maximum=360.0,
    )
    rate: float = parameter(
        2.0,
        'Stereo pairs per second of simulated time. If rendering takes longer, simulated time '
        'runs slower than real time.',
        unit='Hz',
        minimum=0.1,
        maximum=100.0,
    )
    samples: int = parameter(
        1,
        'Rays for each pixel: 1, 2 or 4. More rays give smoother edges and take longer.',
        minimum=1,
        maximum=4,
    )
    speed: float = parameter(
        0.3,
        'Speed of the built-in drive, which ends when somebody publishes `cmd_vel`.',
        unit='m/s',
        minimum=-2.0,
        maximum=2.0,
    )
    turn_rate: float = parameter(
        1.5,
        'Turn rate of the built-in drive, counterclockwise. The drive ends when somebody '
        'publishes `cmd_vel`.',
        unit='deg/s',
        minimum=-90.0,
        maximum=90.0,
    )
    cmd_vel_timeout: float = parameter(
        1.0,
        'Simulated time without a new `cmd_vel` after which the rover stops.',
        unit='s',
        minimum=0.01,
        maximum=60.0,
    )
    frames: int = parameter(
        0,
        'Number of stereo pairs after which the simulator ends. 0 never ends it.',
        minimum=0,
        maximum=2**31 - 1,
    )
    rocks: str = parameter(
        'heightfield',
        'Form of the rocks: `heightfield` makes them part of the ground; `mesh` gives them '
        'overhangs and needs an x86-64 processor.',
        choices=('heightfield', 'mesh'),
    )
    device: str = parameter(
        'cpu',
        'Device that renders: `cpu`, or `cuda`, which cannot render rocks of the form `mesh`.',
        choices=('cpu', 'cuda'),
    )
    rover_shadow: bool = parameter(True, 'Render the shadow that the rover casts.')
    shadow_cache: bool = parameter(
        True,
        'Compute once, at start, which ground the sun reaches. This takes seconds and makes every '
        'image faster.',
    )
    faults: str = parameter(
        '',
        'YAML file of camera faults (its form is in docs/simulation.md); empty is none. If it has '
        'distortion, the images are raw and are published on `left/image_raw` and '
        '`right/image_raw`.',
    )


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the replay node."""

    bag: str = parameter('', 'Recording to publish: a rosbag2 folder, or a .mcap or .db3 file.')
    rate: float = parameter(
        1.0,
        'Speed relative to the recording. 0 publishes as fast as `flow_control` or DDS allows.',
        minimum=0.0,
        maximum=1000.0,
    )
    flow_control: bool = parameter(
        False,
        'Wait for the `frame_status` of a frame before the next one is published, so that no '
        'frame is dropped.',
    )
    in_flight: int = parameter(
        1,
        'Number of frames that may wait for their `frame_status` at a time, if `flow_control` is '
        'true.',
        minimum=1,
        maximum=2,
    )
    answer_timeout: float = parameter(
        30.0,
        'Time without a `frame_status` after which a frame counts as unanswered, if '
        '`flow_control` is true.',
        unit='s',
        minimum=0.01,
        maximum=3600.0,
    )
    wait_for_subscribers: float = parameter(
        10.0,
        'Longest time to wait for subscribers of both images; if there are none then, the replay '
        'ends. 0 starts at once.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    min_subscribers: int = parameter(
        1,
        'Number of subscribers that the left image must have before the replay starts; 2 if a '
        'recorder listens to it as well.',
        minimum=1,
        maximum=100,
    )
    loop: bool = parameter(False, 'Start again at the end of the recording, with the same stamps.')
    start_offset: float = parameter(
        0.0,
        'Length of the beginning of the recording that is left out.',
        unit='s',
        minimum=0.0,
        maximum=1e9,
    )
    topics: list[str] = parameter([''], 'Topics of the recording to publish. Empty is all.')
    rename_rig: bool = parameter(
        False,
        'Publish images and camera_infos of the rig as `left/image_rect`, `left/camera_info`, '
        '`right/image_rect` and `right/camera_info` in the namespace of the node, whatever their '
        'names in the recording.',
    )
    clock: bool = parameter(False, 'Publish the time of the recording on `/clock`.')
    clock_rate: float = parameter(
        100.0,
        'Rate of `/clock` between messages of the recording, if `clock` is true.',
        unit='Hz',
        minimum=1.0,
        maximum=1000.0,
    )
    left_image: str = parameter(
        '',
        'Topic of the left image in the recording. Empty finds it by its name; set both image '
        'topics or none.',
    )
    right_image: str = parameter(
        '',
        'Topic of the right image in the recording. Empty finds it by its name; set both image '
        'topics or none.',
    )
    left_info: str = parameter(
        '',
        'Topic of the left camera_info in the recording. Empty finds it by its name or, if the '
        'image topics are set, means that there is none.',
    )
    right_info: str = parameter(
        '',
        'Topic of the right camera_info in the recording. Empty finds it by its name or, if the '
        'image topics are set, means that there is none.',
    )


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder node."""

    bag: str = parameter('', 'Recording to write: a rosbag2 folder that does not exist yet.')
    overwrite: bool = parameter(False, 'Replace the recording `bag` if it exists already.')
    summary: str = parameter('', 'JSON file to write counts and latencies to. Empty writes none.')
    topics: list[str] = parameter(
        [
            'left/image_rect',
            'points2',
            'confidence',
            'disparity',
            'depth/image',
            'depth/camera_info',
            'frame_status',
        ],
        'Topics to record: images and camera_infos of the cameras (`left/image_rect`, '
        '`right/image_raw` and so on), results of the reconstruction, and the truth of a '
        'simulator (`ground_truth/depth`, `ground_truth/pose`).',
    )
    stop_after: int = parameter(
        0,
        'Number of answered frames after which the recording ends. 0 records until the node is '
        'interrupted.',
        minimum=0,
    )
    idle_timeout: float = parameter(
        0.0,
        'Time without a message, after the first frame, after which the recording ends. 0 never '
        'ends it.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    drain_timeout: float = parameter(
        3.0,
        'Time to wait, at the end of the recording, for results of frames that were answered.',
        unit='s',
        minimum=0.0,
        maximum=60.0,
    )


@dataclass(frozen=True)
class CameraInfoRelayParameters:
    """Parameters of the relay of simulated camera_infos."""

    baseline: float = parameter(
        0.0,
        'Distance between the two cameras. 0 takes it from `P[3]` of the right camera_info that '
        'arrives.',
        unit='m',
        minimum=0.0,
        maximum=100.0,
    )
    pixel_offset: float = parameter(
        0.0,
        'Amount to subtract from both coordinates of the principal point: 0.5 if the simulator '
        'counts pixels from the corner of the image, as Gazebo does.',
        unit='px',
        minimum=-1.0,
        maximum=1.0,
    )


@dataclass(frozen=True)
class TerrainParameters:
    """Parameters of the terrain node. Those that begin with `hazard_` are the reconstruction's."""

    autostart: bool = parameter(
        True,
        'Configure and activate the node at start. If false, the node waits for a lifecycle '
        'manager.',
    )
    pose_source: str = parameter(
        'odometry',
        'Source of the poses: `odometry` uses the topic `odom` (Odometry); `pose` uses the topic '
        '`pose` (PoseStamped); `tf` uses TF and needs tf2_ros. The z axis of their frame must '
        'point up.',
        choices=POSE_SOURCES,
    )
    map_frame: str = parameter('odom', 'Frame of the map if `pose_source` is `tf`.')
    pose_child_frame: str = parameter(
        '',
        'Frame whose pose the topic `pose` gives. Empty is the frame of the cloud, the left '
        'camera.',
    )
    rig: str = parameter(
        '',
        'YAML file of where the cameras are on the rover, as the launch argument `rig`. Empty '
        'takes it from `/tf_static` where the pose is not that of the camera.',
    )
    pose_patience: float = parameter(
        0.5,
        'Time that a cloud waits for the pose of its stamp.',
        unit='s',
        minimum=0.0,
        maximum=10.0,
    )
    pose_gap: float = parameter(
        1.0,
        'Largest time between two poses between which a pose is interpolated.',
        unit='s',
        minimum=0.001,
        maximum=60.0,
    )
    max_speed: float = parameter(
        3.0,
        'Speed that the rover never reaches. A pose that moves faster has jumped, and the map is '
        'cleared.',
        unit='m/s',
        minimum=0.01,
        maximum=100.0,
    )
    focal_baseline: float = parameter(
        0.0,
        'Focal length times baseline, from which the error of a depth follows where the cloud '
        'has no field `sigma`. 0 takes it from `P[3]` of `right/camera_info`.',
        unit='px m',
        minimum=0.0,
        maximum=1e7,
    )
    length: float = parameter(
        20.0, 'Edge of the square map around the rover.', unit='m', minimum=1.0, maximum=1000.0
    )
    cell: float = parameter(
        0.1, 'Edge of one cell of the map.', unit='m', minimum=0.01, maximum=10.0
    )
    range: float = parameter(
        10.0,
        'Points that are farther away are left out. The distance is measured along the optical '
        'axis.',
        unit='m',
        minimum=0.1,
        maximum=1000.0,
    )
    min_confidence: float = parameter(
        0.5, 'Points with a lower confidence are left out.', minimum=0.0, maximum=1.0
    )
    gate: float = parameter(
        3.0,
        'Heights that are farther from the map than this many standard deviations are left out, '
        'unless three frames in a row say the same.',
        minimum=0.5,
        maximum=100.0,
    )
    pose_tilt: float = parameter(
        0.1,
        'Standard deviation of roll and pitch of the poses.',
        unit='deg',
        minimum=0.0,
        maximum=45.0,
    )
    height_drift: float = parameter(
        0.005,
        'Standard deviation that driving one metre adds to the heights of the map. Longer ways '
        'add it by the square root of their length.',
        unit='m',
        minimum=0.0,
        maximum=10.0,
    )
    height_aging: float = parameter(
        0.0005,
        'Standard deviation that one second adds to the heights of the map. Longer times add it '
        'by their square root.',
        unit='m',
        minimum=0.0,
        maximum=10.0,
    )
    max_deviation: float = parameter(
        0.15,
        'Cells with a larger standard deviation of their height are unknown.',
        unit='m',
        minimum=0.001,
        maximum=100.0,
    )
    hazard_clearance: float = parameter(
        0.3,
        'Height of a step that the map marks as not drivable: the ground clearance of the rover. '
        'Steps come out lower than they are, and are marked from nine tenths of it.',
        unit='m',
        minimum=0.01,
        maximum=10.0,
    )
    hazard_max_slope: float = parameter(
        20.0,
        'Slope that the map marks as not drivable.',
        unit='deg',
        minimum=1.0,
        maximum=80.0,
    )
    hazard_footprint: float = parameter(
        1.0,
        'Edge of the square of ground over which the map measures slope: about the size of the '
        'rover.',
        unit='m',
        minimum=0.1,
        maximum=20.0,
    )
    publish_rate: float = parameter(
        2.0,
        'Largest number of maps to publish per second, counted by the stamps of the clouds. 0 '
        'publishes one for each cloud.',
        unit='Hz',
        minimum=0.0,
        maximum=1000.0,
    )
    silence_warning: float = parameter(
        5.0,
        'Time without a cloud in the map after which a warning in the log says why there is none. '
        '0 never warns.',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )

    @property
    def options(self) -> TerrainOptions:
        """Return extent and trust of the map.

        Raises:
            InputError: The map would have too many cells.
        """
        return TerrainOptions(
            length_m=self.length,
            cell_m=self.cell,
            max_range_m=self.range,
            min_confidence=self.min_confidence,
            gate=self.gate,
            tilt_deg=self.pose_tilt,
            drift=self.height_drift,
            aging=self.height_aging,
            max_deviation_m=self.max_deviation,
            hazard=HazardOptions(
                self.hazard_clearance, self.hazard_max_slope, self.hazard_footprint
            ),
        )
