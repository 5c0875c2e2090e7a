"""A Reconstruction as ROS messages, the one implementation for DDS and bags.

Messages are made through a `MakeMessage`: rclpy's classes in `ros/rclpy_messages`, rosbags'
classes in `bags/writer`. All results have the left image's stamp, and its frame unless moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from dataclasses import dataclass
import struct
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, Region, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.disparity import depth_millimetres
from lunar_stereo_recon.geometry.voxel import voxel_means, weights_of_sigma

# x y z rgb confidence, float32 each, without padding: 20 bytes a point. PCL's 32-byte layout
# (x y z pad rgb pad pad pad) would be 60 % larger, 9.8 instead of 6.1 MB at 640x480, which costs
# more in transport than PCL's field-by-field copy costs on the other side.
CLOUD_FIELDS = ('x', 'y', 'z', 'rgb', 'confidence')
UNCOLORED_FIELDS = ('x', 'y', 'z', 'confidence')
SIGMA_FIELD = 'sigma'
_POINT_FIELD_FLOAT32 = 7
# Refined disparities are continuous; this is the step below which differences mean nothing.
DISPARITY_RESOLUTION_PX = 1.0 / 16.0
# Steps of a pixel of disparity in which compressed depth is given: half of one is the largest
# error. Disparities that 16 bits cannot hold in these steps get larger ones.
COMPRESSED_STEPS = 64
# What image_transport's plugin `compressedDepth` puts before the PNG: that the values are of
# inverse depth (0), and their two parameters, depth = a / (value - b).
COMPRESSED_DEPTH_HEADER = struct.Struct('<iff')
INVERSE_DEPTH = 0
# Higher levels take several times as long for a tenth of the bytes.
PNG_LEVEL = 1


class MakeMessage(Protocol):
    """Makes a message of a type named as 'sensor_msgs/msg/Image' from all of its fields."""

    def __call__(self, type_name: str, **fields: Any) -> Any: ...


def header(make: MakeMessage, stamp_ns: int, frame_id: str) -> Any:
    """Return a std_msgs Header."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
    return make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)


def image_message(
    make: MakeMessage, values: NDArray[Any], encoding: str, stamp_ns: int, frame_id: str
) -> Any:
    """Return an Image whose bytes are those of `values`, (H, W) or (H, W, C), little endian."""
    values = np.ascontiguousarray(values)
    return make(
        'sensor_msgs/msg/Image',
        header=header(make, stamp_ns, frame_id),
        height=values.shape[0],
        width=values.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=values.strides[0],
        data=values.view(np.uint8).reshape(-1),
    )


def camera_info_message(
    make: MakeMessage,
    calibration: StereoCalibration,
    stamp_ns: int,
    frame_id: str,
    *,
    right: bool = False,
) -> Any:
    """Return the CameraInfo of one rectified camera; the right one has P[3] = -fx * baseline."""
    fx, fy, cy = calibration.fx, calibration.fy, calibration.cy
    cx = calibration.cx_right if right else calibration.cx
    tx = -fx * calibration.baseline_m if right else 0.0
    return make(
        'sensor_msgs/msg/CameraInfo',
        header=header(make, stamp_ns, frame_id),
        height=calibration.height,
        width=calibration.width,
        distortion_model='plumb_bob',
        d=np.zeros(5),
        k=np.array([fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]),
        r=np.eye(3).reshape(-1),
        p=np.array([fx, 0.0, cx, tx, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]),
        binning_x=0,
        binning_y=0,
        roi=_region(make, 0, 0, 0, 0),
    )


@dataclass(frozen=True)
class CloudForm:
    """How a cloud is given.

    Attributes:
        decimation: Keep every n-th row and column of the image.
        organized: One point a pixel, NaN where invalid; otherwise the valid points in one row.
        voxel_m: Where positive, one point a voxel of this edge: the mean of those in it. Such a
            cloud is not organised.
        color: With the field `rgb`.
        sigma: With the field `sigma`, one standard deviation of depth, metres; NaN where unknown.
    """

    decimation: int = 1
    organized: bool = True
    voxel_m: float = 0.0
    color: bool = True
    sigma: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields, float32 each."""
        fields = CLOUD_FIELDS if self.color else UNCOLORED_FIELDS
        return (*fields, SIGMA_FIELD) if self.sigma else fields


Allocate = Callable[[tuple[int, ...]], FloatImage]


def _new_array(shape: tuple[int, ...]) -> FloatImage:
    return np.empty(shape, np.float32)


def point_cloud_message(
    make: MakeMessage,
    reconstruction: Reconstruction,
    form: CloudForm = CloudForm(),
    allocate: Allocate = _new_array,
) -> Any:
    """Return the PointCloud2 of a reconstruction; of its region only, where it has one.

    rgb holds the bytes of 0x00RRGGBB, as PCL and RViz read the field `rgb`.

    Args:
        make: Message factory.
        reconstruction: The result.
        form: What is wanted of it.
        allocate: Gives float32 memory of a shape for the points.
    """
    values = _organized_values(_thinned(reconstruction, form.decimation), form, allocate)
    organized = form.organized and not form.voxel_m
    if not organized:
        values = values[np.isfinite(values[..., 2])][None]
        if form.voxel_m:
            values = _voxel_values(values[0], form)[None]
    height, width = values.shape[:2]
    point_step = 4 * len(form.fields)
    return make(
        'sensor_msgs/msg/PointCloud2',
        header=header(make, reconstruction.stamp_ns, reconstruction.frame_id),
        height=height,
        width=width,
        fields=[
            make(
                'sensor_msgs/msg/PointField',
                name=name,
                offset=4 * index,
                datatype=_POINT_FIELD_FLOAT32,
                count=1,
            )
            for index, name in enumerate(form.fields)
        ],
        is_bigendian=False,
        point_step=point_step,
        row_step=point_step * width,
        data=values.view(np.uint8).reshape(-1),
        is_dense=not organized,
    )


def moved_points(
    reconstruction: Reconstruction,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    frame_id: str,
) -> Reconstruction:
    """Return the reconstruction with its points in another frame, for its cloud.

    Args:
        reconstruction: The result; its images stay in the optical frame.
        rotation: (3, 3), frame from optical frame.
        translation: (3,) origin of the optical frame in the frame, metres.
        frame_id: Name of the frame.
    """
    points = reconstruction.points.reshape(-1, 3) @ rotation.T.astype(np.float32)
    points += translation.astype(np.float32)
    return dataclasses.replace(
        reconstruction, points=points.reshape(reconstruction.points.shape), frame_id=frame_id
    )


def _organized_values(
    reconstruction: Reconstruction, form: CloudForm, allocate: Allocate
) -> FloatImage:
    """Return (H, W, C) float32, the fields of each point. x, y, z are NaN where invalid."""
    out = allocate((*reconstruction.confidence.shape, len(form.fields)))
    sources = [reconstruction.points]
    if form.color:
        packed = cv2.cvtColor(reconstruction.color, cv2.COLOR_RGB2BGRA)
        packed[..., 3] = 0
        # Channels are moved as bits: no float rule touches the colours.
        sources.append(packed.view(np.float32))
    sources.append(reconstruction.confidence)
    if form.sigma:
        sigma = reconstruction.depth_sigma_m
        unknown = np.full_like(reconstruction.confidence, np.nan)
        sources.append(unknown if sigma is None else sigma)
    channels = [index for channel in range(len(form.fields)) for index in (channel, channel)]
    cv2.mixChannels(sources, [out], channels)
    return out


def _voxel_values(values: FloatImage, form: CloudForm) -> FloatImage:
    """Return (M, C) fields of the voxels' means for (N, C) fields of the points."""
    attributes = values[:, 3:]
    if form.color:
        channels = np.ascontiguousarray(values[:, 3]).view(np.uint8).reshape(-1, 4)
        attributes = np.hstack([channels[:, :3].astype(np.float32), values[:, 4:]])
    # The nearer point of a voxel is the better known one.
    weights = weights_of_sigma(values[:, -1]) if form.sigma else None
    points, means = voxel_means(values[:, :3], attributes, form.voxel_m, weights)
    if not form.color:
        return np.hstack([points, means])
    packed = np.zeros((len(points), 4), np.uint8)
    packed[:, :3] = np.rint(means[:, :3])
    return np.hstack([points, packed.view(np.float32), means[:, 3:]])


def _thinned(reconstruction: Reconstruction, step: int) -> Reconstruction:
    """Return every `step`-th row and column of what the cloud is made of, inside the region."""
    if step == 1 and reconstruction.region is None:
        return reconstruction
    height, width = reconstruction.depth.shape
    rows, columns = (reconstruction.region or Region(0, 0, width, height)).slices(step)
    grids: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(reconstruction, name)[rows, columns])
        for name in ('confidence', 'points', 'color', 'depth_sigma_m')
        if getattr(reconstruction, name) is not None
    }
    return dataclasses.replace(reconstruction, **grids)


def confidence_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the confidence, 32FC1 in [0, 1]."""
    return image_message(
        make,
        reconstruction.confidence,
        '32FC1',
        reconstruction.stamp_ns,
        reconstruction.frame_id,
    )


def confidence_view_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the confidence to look at, mono8: 255 is certain."""
    view = np.rint(reconstruction.confidence * np.float32(255)).astype(np.uint8)
    return image_message(make, view, 'mono8', reconstruction.stamp_ns, reconstruction.frame_id)


def depth_message(
    make: MakeMessage, reconstruction: Reconstruction, encoding: str = '32FC1'
) -> Any:
    """Return the depth along the optical axis, by REP 118.

    Args:
        make: Message factory.
        reconstruction: The result.
        encoding: '32FC1' for metres, NaN invalid; '16UC1' for millimetres, 0 invalid or farther
            than 65.5 m.
    """
    depth = reconstruction.depth
    values = depth if encoding == '32FC1' else depth_millimetres(depth)
    return image_message(make, values, encoding, reconstruction.stamp_ns, reconstruction.frame_id)


def compressed_depth_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the depth as image_transport's `compressedDepth` has it, a tenth of the bytes.

    Any subscriber with that plugin makes a 32FC1 image in metres of it, NaN where invalid. Inverse
    depth is stored, in steps of 1 / `COMPRESSED_STEPS` px of disparity: the error is at most half
    a step, beyond 1,023 px of disparity 1 part in 131,070 of the largest one.
    """
    calibration = reconstruction.calibration
    focal_times_baseline = np.float32(calibration.fx * calibration.baseline_m)
    disparity = np.nan_to_num(focal_times_baseline / reconstruction.depth, nan=0.0, copy=False)
    largest = float(disparity.max(initial=1.0))
    steps = np.float32(min(COMPRESSED_STEPS, np.iinfo(np.uint16).max / largest))
    values = np.rint(disparity * steps).astype(np.uint16)
    _, png = cv2.imencode('.png', values, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    parameters = float(focal_times_baseline * steps), 0.0
    start = COMPRESSED_DEPTH_HEADER.pack(INVERSE_DEPTH, *parameters)
    return make(
        'sensor_msgs/msg/CompressedImage',
        header=header(make, reconstruction.stamp_ns, reconstruction.frame_id),
        format='32FC1; compressedDepth png',
        data=np.concatenate([np.frombuffer(start, np.uint8), png.reshape(-1)]),
    )


def depth_sigma_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return one standard deviation of the depth, 32FC1, metres; NaN where invalid.

    Raises:
        InputError: The reconstruction has none.
    """
    sigma = reconstruction.depth_sigma_m
    if sigma is None:
        raise InputError(
            'depth has no sigma: the model has no calibration of it (`python -m training '
            'calibrate` adds it), or the matcher is a classical one'
        )
    return image_message(make, sigma, '32FC1', reconstruction.stamp_ns, reconstruction.frame_id)


def left_image_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the rectified left image, rgb8; its CameraInfo is that of the depth."""
    return image_message(
        make,
        reconstruction.color,
        'rgb8',
        reconstruction.stamp_ns,
        reconstruction.frame_id,
    )


def depth_info_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the CameraInfo of the depth image: the rectified left camera."""
    return camera_info_message(
        make, reconstruction.calibration, reconstruction.stamp_ns, reconstruction.frame_id
    )


def disparity_message(make: MakeMessage, reconstruction: Reconstruction) -> Any:
    """Return the DisparityImage: Z = f * t / d, d free of the principal point offset.

    Invalid is NaN.
    """
    calibration = reconstruction.calibration
    smallest, largest = reconstruction.searched_px
    stamp_ns, frame_id = reconstruction.stamp_ns, reconstruction.frame_id
    window = reconstruction.region or Region(0, 0, calibration.width, calibration.height)
    return make(
        'stereo_msgs/msg/DisparityImage',
        header=header(make, stamp_ns, frame_id),
        image=image_message(make, reconstruction.disparity, '32FC1', stamp_ns, frame_id),
        f=float(calibration.fx),
        t=float(calibration.baseline_m),
        # Estimates are given up to the border, so the window of possible values is the image.
        valid_window=_region(make, window.x, window.y, window.height, window.width),
        min_disparity=float(smallest),
        max_disparity=float(largest),
        delta_d=DISPARITY_RESOLUTION_PX,
    )


def occupancy_grid_message(
    make: MakeMessage,
    hazard: NDArray[np.int8],
    cell_m: float,
    position: Sequence[float],
    quaternion: Sequence[float],
    stamp_ns: int,
    frame_id: str,
) -> Any:
    """Return the hazards as a `nav_msgs` OccupancyGrid: 0 free, 100 lethal, -1 unknown.

    Args:
        make: Message factory.
        hazard: (rows, columns) int8.
        cell_m: Edge of a cell, metres.
        position: Position of the grid's first corner in the frame, metres.
        quaternion: x, y, z, w of the grid's axes in the frame.
        stamp_ns: Time of the image.
        frame_id: The frame.
    """
    stamped = header(make, stamp_ns, frame_id)
    xyz = dict(zip('xyz', map(float, position), strict=True))
    xyzw = dict(zip('xyzw', map(float, quaternion), strict=True))
    origin = make(
        'geometry_msgs/msg/Pose',
        position=make('geometry_msgs/msg/Point', **xyz),
        orientation=make('geometry_msgs/msg/Quaternion', **xyzw),
    )
    return make(
        'nav_msgs/msg/OccupancyGrid',
        header=stamped,
        info=make(
            'nav_msgs/msg/MapMetaData',
            map_load_time=stamped.stamp,
            resolution=float(cell_m),
            width=hazard.shape[1],
            height=hazard.shape[0],
            origin=origin,
        ),
        data=hazard.reshape(-1),
    )


def _region(make: MakeMessage, x_offset: int, y_offset: int, height: int, width: int) -> Any:
    return make(
        'sensor_msgs/msg/RegionOfInterest',
        x_offset=x_offset,
        y_offset=y_offset,
        height=height,
        width=width,
        do_rectify=False,
    )
