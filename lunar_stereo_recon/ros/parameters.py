"""Parameters of the nodes, declared once: default, description, unit, range, when they act.

A node's parameters are a frozen dataclass. Declaring, reading and checking changes are derived
from its fields, so a parameter is added by adding a field.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
from dataclasses import dataclass
import math
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from lunar_stereo_recon.datatypes import Region
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.hazard import GridLayout, HazardOptions
from lunar_stereo_recon.pipeline import ReconstructionOptions
from lunar_stereo_recon.result_messages import CloudForm

OUTPUTS = ('points2', 'confidence', 'disparity', 'depth', 'hazard', 'image')
SAVE_FORMATS = ('ply', 'pcd')
GRAVITIES = ('tf', 'imu', 'fixed')
RELIABILITIES = ('auto', 'reliable', 'best_effort')
DEPTH_ENCODINGS = ('32FC1', '16UC1')
TRANSPORTS = ('raw', 'compressed')
# Below this the voxels of a cloud of kilometres cannot be told apart.
MIN_VOXEL_M = 0.005

_Parameters = TypeVar('_Parameters')


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
        description: One sentence for `ros2 param describe`.
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


@dataclass(frozen=True)
class ReconstructionParameters:
    """Parameters of the reconstruction node."""

    autostart: bool = parameter(
        True, 'Configure and activate at start; false waits for a lifecycle manager'
    )
    # A change of these three acts when ~/set_model is called: loading takes time, and may fail.
    backend: str = parameter(
        'onnx',
        'Matcher to use; ~/set_model makes a change act',
        choices=('onnx', 'openvino', 'sgbm', 'sgbm_hh', 'bm'),
        dynamic=True,
    )
    model: str = parameter(
        '',
        "Path of the model file, or a shipped one: 'flight' (where empty), 'flight_int8'; "
        '~/set_model makes a change act',
        dynamic=True,
    )
    model_key: str = parameter(
        '',
        'Public key (PEM) that the model file must be signed for, its signature beside it as '
        'NAME.onnx.sig; empty asks for none',
    )
    providers: list[str] = parameter(
        [''],
        'Execution providers of the backend onnx in order of preference; empty is the CPU; '
        '~/set_model makes a change act',
        dynamic=True,
    )
    threads: int = parameter(
        0, 'Threads of matcher and refinement; 0 leaves it to the runtime', minimum=0, maximum=256
    )
    approximate_sync: bool = parameter(
        False, 'Pair images whose stamps differ by up to the tolerance; false wants equal stamps'
    )
    approximate_sync_tolerance_seconds: float = parameter(
        0.01, 'Largest difference of the stamps of a pair', unit='s', minimum=0.0, maximum=10.0
    )
    queue_size: int = parameter(
        5, 'Images of one side that may wait for the other side', minimum=1, maximum=1000
    )
    input_transport: str = parameter(
        'raw',
        'raw subscribes to Image, compressed to CompressedImage on <topic>/compressed',
        choices=TRANSPORTS,
    )
    input_reliability: str = parameter(
        'auto',
        'Reliability of the image subscriptions; auto takes what the publishers offer',
        choices=RELIABILITIES,
    )
    rectify: bool = parameter(
        False, 'The images are raw: subscribe to image_raw and rectify by D, K, R and P'
    )
    detect_raw: bool = parameter(
        True,
        'Rectify images too that look raw: their camera_info has distortion and no topic is '
        'called rectified; false takes them as they are',
        dynamic=True,
    )
    left_camera_info_url: str = parameter(
        '',
        'YAML file with the left camera_info (path, file:// or package://); empty takes the topic',
    )
    right_camera_info_url: str = parameter(
        '',
        'YAML file with the right camera_info (path, file:// or package://); empty takes the '
        'topic',
    )
    cache_camera_info: bool = parameter(
        False, 'Keep the first camera_info of each side and listen to no further one'
    )
    baseline: float = parameter(
        0.0,
        'Distance between the cameras; 0 takes it from P[3] of the right camera_info',
        unit='m',
        minimum=0.0,
        maximum=100.0,
        dynamic=True,
    )
    white_level: float = parameter(
        0.0,
        "Image value of white, e.g. 4095 for 12-bit data in mono16; 0 is the encoding's maximum",
        minimum=0.0,
        maximum=65535.0,
        dynamic=True,
    )
    confidence_threshold: float = parameter(
        0.5,
        'Points with a lower probability of being right become NaN',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    min_range: float = parameter(
        0.0, 'Nearer points become NaN', unit='m', minimum=0.0, maximum=1e6, dynamic=True
    )
    max_range: float = parameter(
        0.0,
        'Farther points become NaN; 0 is no limit',
        unit='m',
        minimum=0.0,
        maximum=1e6,
        dynamic=True,
    )
    refine: bool = parameter(True, 'Sharpen the disparity by sub-pixel matching', dynamic=True)
    align_rows: bool = parameter(
        True,
        'Watch the alignment of the rows over the frames and correct the right image, up to 2 px',
        dynamic=True,
    )
    target_ms: float = parameter(
        0.0,
        "Time for a pair: the network's width is chosen so that the first one takes no longer; "
        '0 leaves it at 640 px',
        unit='ms',
        minimum=0.0,
        maximum=10000.0,
        dynamic=True,
    )
    outputs: list[str] = parameter(
        list(OUTPUTS),
        'Results to publish; image is the rectified left image, where the node rectifies',
        choices=OUTPUTS,
        dynamic=True,
    )
    roi: list[int] = parameter(
        [0, 0, 0, 0],
        'Region of interest of the left image: x, y, width, height; points outside are invalid, '
        'the cloud holds it alone; zeros are the whole image',
        unit='px',
        dynamic=True,
    )
    organized: bool = parameter(
        True,
        'Cloud with a point a pixel, NaN where invalid; false gives the valid points in one row',
        dynamic=True,
    )
    voxel_size: float = parameter(
        0.0,
        'One point a voxel of this edge, the mean of those in it (not organised); 0 keeps all',
        unit='m',
        minimum=0.0,
        maximum=10.0,
        dynamic=True,
    )
    color: bool = parameter(True, 'Cloud with the field rgb', dynamic=True)
    cloud_frame: str = parameter(
        '',
        "Frame of the cloud, such as 'base_link', by TF; empty is the left optical frame",
        dynamic=True,
    )
    decimation: int = parameter(
        1,
        'Keep every n-th row and column of the cloud; the images stay whole',
        minimum=1,
        maximum=64,
        dynamic=True,
    )
    depth_encoding: str = parameter(
        '32FC1',
        'Depth image in metres (32FC1, NaN invalid) or millimetres (16UC1, 0 invalid)',
        choices=DEPTH_ENCODINGS,
        dynamic=True,
    )
    hazard_gravity: str = parameter(
        'tf',
        'What tells gravity for the hazard grid: tf (hazard_frame), imu (topic imu, camera_pitch) '
        'or fixed (camera_pitch, on level ground)',
        choices=GRAVITIES,
        dynamic=True,
    )
    hazard_frame: str = parameter(
        'odom', 'Frame of the hazard grid with z up, for hazard_gravity tf', dynamic=True
    )
    camera_pitch: float = parameter(
        0.0,
        'Of the camera in the body, for hazard_gravity imu and fixed; negative looks down',
        unit='deg',
        minimum=-90.0,
        maximum=90.0,
        dynamic=True,
    )
    hazard_range: float = parameter(
        10.0, 'How far the hazard grid reaches', unit='m', minimum=0.5, maximum=200.0, dynamic=True
    )
    hazard_cell: float = parameter(
        0.2, 'Edge of a cell of it', unit='m', minimum=0.02, maximum=10.0, dynamic=True
    )
    hazard_clearance: float = parameter(
        0.3,
        "Step that is lethal: the rover's clearance",
        unit='m',
        minimum=0.01,
        maximum=10.0,
        dynamic=True,
    )
    hazard_max_slope: float = parameter(
        20.0, 'Slope that is lethal', unit='deg', minimum=1.0, maximum=80.0, dynamic=True
    )
    hazard_footprint: float = parameter(
        1.0,
        "Edge of the square over which slope is taken: about the rover's size",
        unit='m',
        minimum=0.1,
        maximum=20.0,
        dynamic=True,
    )
    hazard_confidence: float = parameter(
        0.5,
        'Points of lower confidence do not count in the hazard grid',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    save_directory: str = parameter(
        '.', 'Where the service ~/save_cloud writes its files', dynamic=True
    )
    save_format: str = parameter('ply', 'Form of these files', choices=SAVE_FORMATS, dynamic=True)
    lazy: bool = parameter(
        True,
        'Subscribe to images and reconstruct only while somebody subscribes to a result',
        dynamic=True,
    )
    target_rate: float = parameter(
        0.0,
        'Pairs to reconstruct per second of stamps at most; 0 is every pair',
        unit='Hz',
        minimum=0.0,
        maximum=1000.0,
        dynamic=True,
    )
    fallback_after: int = parameter(
        3,
        'Failures of the matcher in a row after which a simpler one takes over: its execution '
        'provider gives way to the CPU, then the network to sgbm; 0 never. ~/set_model goes back',
        minimum=0,
        maximum=1000,
        dynamic=True,
    )
    watchdog: float = parameter(
        30.0,
        'Time in the work of one pair after which the matcher counts as stuck and is replaced as '
        'by fallback_after; 0 waits for ever',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        dynamic=True,
    )
    silence_warning: float = parameter(
        5.0,
        'Time without a result after which a warning says why; 0 never warns',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
        dynamic=True,
    )

    def __post_init__(self) -> None:
        """Check what concerns more than one parameter.

        Raises:
            InputError: min_range and max_range exclude each other, `roi` is no region, voxels
                are too small to be told apart, or the hazard grid would have too many cells.
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
        return CloudForm(self.decimation, self.organized, self.voxel_size, self.color)

    @property
    def tolerance_ns(self) -> int:
        """Return the largest difference of the stamps of a pair, nanoseconds."""
        seconds = self.approximate_sync_tolerance_seconds if self.approximate_sync else 0.0
        return round(seconds * 1e9)


@dataclass(frozen=True)
class SimulatorParameters:
    """Parameters of the simulator node."""

    preset: str = parameter('mare', "Kind of ground, see 'lunar-stereo gallery'")
    seed: int = parameter(0, 'Everything random follows from it', minimum=0, maximum=2**31 - 1)
    width: int = parameter(640, 'Of the images', unit='px', minimum=64, maximum=4096)
    height: int = parameter(480, 'Of the images', unit='px', minimum=64, maximum=4096)
    focal_length: float = parameter(
        0.72, 'Focal length over image width', minimum=0.2, maximum=5.0
    )
    baseline: float = parameter(
        0.3, 'Distance between the cameras', unit='m', minimum=0.01, maximum=2.0
    )
    camera_height: float = parameter(
        1.4, 'Of the cameras above the ground', unit='m', minimum=0.1, maximum=5.0
    )
    camera_pitch: float = parameter(
        -16.0, 'Of the cameras; negative looks down', unit='deg', minimum=-89.0, maximum=60.0
    )
    sun_elevation: float = parameter(
        0.0,
        'Above the horizon; 0 is the typical one of the preset',
        unit='deg',
        minimum=-90.0,
        maximum=90.0,
    )
    sun_azimuth: float = parameter(
        115.0, 'Counterclockwise from x of the map', unit='deg', minimum=-360.0, maximum=360.0
    )
    rate: float = parameter(
        2.0,
        'Stereo pairs per second of simulated time; where the machine cannot follow, '
        'simulated time goes slower',
        unit='Hz',
        minimum=0.1,
        maximum=100.0,
    )
    samples: int = parameter(
        1,
        'Rays a pixel: 1, 2 or 4; more give smoother edges and take longer',
        minimum=1,
        maximum=4,
    )
    speed: float = parameter(
        0.3,
        'Of the built-in drive, until somebody publishes cmd_vel',
        unit='m/s',
        minimum=-2.0,
        maximum=2.0,
    )
    turn_rate: float = parameter(
        1.5, 'Of the built-in drive, counterclockwise', unit='deg/s', minimum=-90.0, maximum=90.0
    )
    cmd_vel_timeout: float = parameter(
        1.0,
        'Simulated time after which the rover stops without a new cmd_vel',
        unit='s',
        minimum=0.01,
        maximum=60.0,
    )
    frames: int = parameter(0, 'End after so many pairs; 0 is never', minimum=0, maximum=2**31 - 1)
    rocks: str = parameter(
        'heightfield',
        'Form of the rocks; meshes have overhangs (x86-64 only)',
        choices=('heightfield', 'mesh'),
    )
    device: str = parameter(
        'cpu', 'What renders; cuda does without rocks as meshes', choices=('cpu', 'cuda')
    )
    rover_shadow: bool = parameter(True, 'The rover casts a shadow')
    shadow_cache: bool = parameter(
        True, 'Find once where the sun reaches the ground: seconds at the start, faster pictures'
    )
    faults: str = parameter(
        '',
        'YAML file of what the cameras do wrong (docs/simulation.md); with distortion the images '
        'are raw, on left/image_raw and right/image_raw',
    )


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the replay node."""

    bag: str = parameter('', 'rosbag2 directory, .mcap or .db3 to publish')
    rate: float = parameter(
        1.0,
        'Speed relative to the recording; 0 publishes as fast as flow_control or DDS allows',
        minimum=0.0,
        maximum=1000.0,
    )
    flow_control: bool = parameter(
        False, 'Wait for the frame_status of each frame before the next, so that none is lost'
    )
    in_flight: int = parameter(
        1, 'Frames that may be unanswered at a time with flow_control', minimum=1, maximum=2
    )
    answer_timeout: float = parameter(
        30.0,
        'Time after which a frame counts as unanswered with flow_control',
        unit='s',
        minimum=0.01,
        maximum=3600.0,
    )
    wait_for_subscribers: float = parameter(
        10.0,
        'Time to wait for a subscriber on each image topic before starting; 0 starts at once',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    min_subscribers: int = parameter(
        1,
        'Subscribers that the left image must have before starting; 2 with a recorder of it',
        minimum=1,
        maximum=100,
    )
    loop: bool = parameter(False, 'Start again at the end, with the same stamps')
    start_offset: float = parameter(
        0.0, 'Skip this much of the beginning', unit='s', minimum=0.0, maximum=1e9
    )
    topics: list[str] = parameter([''], 'Topics to publish; empty is all')
    rename_rig: bool = parameter(
        False,
        "Publish the rig's topics as left/image_rect, left/camera_info, right/... in the node's "
        'namespace, whatever their names in the bag',
    )
    clock: bool = parameter(False, 'Publish /clock with the recording time')
    clock_rate: float = parameter(
        100.0, 'Rate of /clock between messages', unit='Hz', minimum=1.0, maximum=1000.0
    )
    left_image: str = parameter('', 'Topic of the left image in the bag; empty finds it')
    right_image: str = parameter('', 'Topic of the right image in the bag; empty finds it')
    left_info: str = parameter('', 'Topic of the left camera_info in the bag; empty finds it')
    right_info: str = parameter('', 'Topic of the right camera_info in the bag; empty finds it')


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder node."""

    bag: str = parameter('', 'rosbag2 directory to make')
    overwrite: bool = parameter(False, 'Replace a bag that is there')
    summary: str = parameter('', 'JSON file for counts and latencies; empty writes none')
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
        'Topics to record',
    )
    stop_after: int = parameter(
        0, 'Finish after this many answered frames; 0 goes on until interrupted', minimum=0
    )
    idle_timeout: float = parameter(
        0.0,
        'Finish when nothing came for this long after the first frame; 0 never',
        unit='s',
        minimum=0.0,
        maximum=3600.0,
    )
    drain_timeout: float = parameter(
        3.0,
        'When asked to finish, wait this long for results of frames that were answered',
        unit='s',
        minimum=0.0,
        maximum=60.0,
    )


def declare_parameters(node: Node, kind: type[_Parameters]) -> _Parameters:
    """Declare the fields of `kind` on the node and return their values.

    Raises:
        InputError: A value is outside its range, not a choice, or of another type.
    """
    values = {}
    for item in dataclasses.fields(kind):
        default = _default(item)
        try:
            declared = node.declare_parameter(item.name, default, _descriptor(item))
        except ParameterException as error:
            raise InputError(f'parameter {item.name}: {error}') from error
        values[item.name] = _checked(item, declared.value)
    return kind(**values)


def changed_parameters(current: _Parameters, changes: Iterable[Parameter]) -> _Parameters:
    """Return the parameters after a set_parameters request; other nodes' names are ignored.

    Raises:
        InputError: A value is not allowed, alone or together with the others.
    """
    fields = {item.name: item for item in dataclasses.fields(current)}
    values = {
        change.name: _checked(fields[change.name], change.value)
        for change in changes
        if change.name in fields
    }
    return dataclasses.replace(current, **values)


def named(values: list[str]) -> list[str]:
    """Return a list parameter without the empty texts that stand for an empty list.

    A launch file or YAML cannot give an empty list a type.
    """
    return [value for value in values if value]


def _default(item: dataclasses.Field) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _descriptor(item: dataclasses.Field) -> ParameterDescriptor:
    about = item.metadata
    unit = f' [{about["unit"]}]' if about['unit'] else ''
    choices = ', '.join(about['choices'])
    descriptor = ParameterDescriptor(
        description=about['description'] + unit,
        additional_constraints=f'one of: {choices}' if choices else '',
        read_only=not about['dynamic'],
    )
    low, high = about['minimum'], about['maximum']
    if isinstance(_default(item), float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif low is not None:
        high = 2**31 - 1 if high is None else high
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


def _checked(item: dataclasses.Field, value: Any) -> Any:
    choices = item.metadata['choices']
    is_list = isinstance(_default(item), list)
    if is_list and value is None:  # what rcl makes of [], a list without a type
        value = []
    given = named(value) if is_list and choices else [value]
    unknown = [text for text in given if choices and text not in choices]
    if unknown:
        raise InputError(
            f'parameter {item.name} is {unknown[0]!r}; one of {", ".join(choices)} is needed'
        )
    return list(value) if is_list else value
