"""Installs the runtime package, for pip and for colcon (ament_python).

`training/` is not installed: it runs from a source checkout.
"""

from pathlib import Path
import re

from setuptools import find_packages, setup

PACKAGE = 'lunar_stereo_recon'
# Resolved, because `colcon build --symlink-install` runs a link to this file from elsewhere.
ROOT = Path(__file__).resolve().parent

# Each of these has its rosdep key in package.xml where rosdep knows one. The lower bounds admit
# what Ubuntu 24.04 ships (NumPy 1.26, OpenCV 4.6), so that apt's packages serve on a ROS machine.
RUNTIME = [
    'backports-zstd>=1.0,<2; python_version < "3.14"',
    'numpy>=1.26,<3',
    'opencv-python-headless>=4.6,<6',
    'onnxruntime>=1.17,<2',
    'pyyaml>=6.0,<7',
    'rosbags>=0.10.10,<0.12',  # 0.10.9 gives no message of the mcap bags written here
    'tqdm>=4.66,<5',
]

SIMULATION = [
    # Embree traces the meshes of rocks; it has wheels for x86-64 only.
    'embreex>=4.4,<5; platform_machine == "x86_64"',
    'numba>=0.60,<1',
    'openexr>=3.3,<4',
    'pyerfa>=2.0,<3',
    'rasterio>=1.3,<2',
    'torch>=2.5,<3',
]


def ros_wheels(
    distribution: str, rclpy: int, rmw: int, index: int, interfaces: int, messages: int
) -> list[str]:
    """Return the wheels of a ROS distribution that the nodes need, by their major versions.

    Args:
        distribution: 'jazzy'.
        rclpy, rmw, index: Of rclpy, rmw_fastrtps_cpp and ament_index_python.
        interfaces: Of rcl_interfaces' packages.
        messages: Of common_interfaces' packages.
    """
    majors = {
        'rclpy': rclpy,
        'rmw-fastrtps-cpp': rmw,
        'ament-index-python': index,
        **dict.fromkeys(('lifecycle-msgs', 'rosgraph-msgs'), interfaces),
        **dict.fromkeys(
            (
                'diagnostic-msgs',
                'geometry-msgs',
                'nav-msgs',
                'sensor-msgs',
                'std-srvs',
                'stereo-msgs',
            ),
            messages,
        ),
    }
    return [f'ros-{distribution}-{name}>={major},<{major + 1}' for name, major in majors.items()]


EXTRAS = {
    # rclpy, Fast DDS and the messages as wheels, for machines without a ROS installation. One
    # distribution to an environment: their modules have the same names.
    'ros': ros_wheels('jazzy', rclpy=7, rmw=8, index=1, interfaces=2, messages=5),
    'ros-kilted': ros_wheels('kilted', rclpy=9, rmw=9, index=1, interfaces=2, messages=5),
    # Runs the student faster than onnxruntime on CPUs that multiply bfloat16. From the release
    # that it was measured with: each changes what its compiler does.
    'openvino': ['openvino>=2026.4,<2027'],
    # Fuzzing guided by coverage: test/fuzz/long_run.py --atheris.
    'fuzz': ['atheris>=3.0,<4'],
    # Checks OpenSSF signatures of model files (parameter `model_key`).
    'signing': ['model-signing>=1.1,<2', 'pyopenssl>=24,<27'],
    # What `lunar-stereo fuse` writes maps with: GeoTIFF and LAZ.
    'map': ['laspy>=2.5,<3', 'lazrs>=0.6,<1', 'rasterio>=1.3,<2'],
    # What `lunar-stereo batch` runs on, and writes its tables with. From 2.52 on Ray can ask for a
    # token; without one, anybody who reaches its ports may run code.
    'batch': ['pyarrow>=15,<26', 'ray>=2.52,<3'],
    # The charts and the cloud of `lunar-stereo evaluate` and `compare`.
    'report': ['plotly>=7,<8'],
    # What `--viewer rerun` shows frames with.
    'viewer': ['rerun-sdk>=0.41,<0.42; python_version >= "3.11"'],
    'sim': SIMULATION,
    # What renders on a GPU beside [sim]: NVIDIA's CUDA target of numba (the one inside numba is
    # deprecated) with its compiler as wheels. Take that of PyTorch's own CUDA
    # (`torch.version.cuda`); the two need different releases of NVIDIA's libraries.
    'cuda12': ['numba-cuda[cu12]>=0.30,<1'],
    'cuda13': ['numba-cuda[cu13]>=0.30,<1'],
    'train': [
        *SIMULATION,
        'omegaconf>=2.3,<3',
        'onnx>=1.16,<2',
        'onnxscript>=0.1,<1',
        'safetensors>=0.4,<1',
        'scipy>=1.11,<2',
        'tensorboard>=2.17,<3',
        'matplotlib>=3.8,<4',
    ],
    # What `colcon test` looks for to choose pytest; Ubuntu 24.04 has 7.4.
    'test': ['pytest>=7.4,<10'],
    'dev': [
        'colcon-core>=0.15,<1',
        'colcon-ros>=0.5,<1',
        'cyclonedx-bom>=7.2,<8',  # make sbom
        'foxglove-sdk>=0.30,<1',  # what the settings of Foxglove's panels are called
        'hypothesis>=6.100,<7',
        'mypy>=1.11,<3',
        'onnx>=1.16,<2',
        'pip-audit>=2.9,<3',  # make audit
        'plotly>=7,<8',  # the pages of `evaluate` and `compare`
        'pytest>=8,<10',
        'rosbags-image>=0.10,<0.12',  # a second reader of image messages, to compare with
        'ruff>=0.17,<0.18',  # one release line formats alike
        'types-PyYAML>=6.0,<7',
        'types-tqdm>=4.66,<5',
    ],
}


def version() -> str:
    """Return the version that the package itself states."""
    text = (ROOT / PACKAGE / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def share_files() -> list[tuple[str, list[str]]]:
    """Return (folder under the install prefix, files) for what ROS looks up in share/."""
    share = f'share/{PACKAGE}'
    entries = [
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (share, ['package.xml', 'LICENSE']),
    ]
    for top in ('launch', 'config'):
        files = [p for p in (ROOT / top).rglob('*') if p.is_file() and p.suffix != '.pyc']
        for folder in sorted({p.parent for p in files}):
            names = sorted(str(p.relative_to(ROOT)) for p in files if p.parent == folder)
            entries.append((f'{share}/{folder.relative_to(ROOT)}', names))
    return entries


setup(
    name=PACKAGE,
    version=version(),
    description='Metric point clouds and calibrated confidence from a lunar rover stereo camera',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='lunar_stereo_recon maintainers',
    maintainer_email='maintainers@lunar-stereo-recon.example',
    python_requires='>=3.10',
    packages=find_packages(include=[f'{PACKAGE}*']),
    package_data={
        PACKAGE: [
            'py.typed',
            'data/benchmark.json',
            'data/demo_traverse/*',
            'ros/*.xml',
            'weights/*.md',
            'weights/*.onnx',
        ]
    },
    data_files=share_files(),
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'lunar-stereo = lunar_stereo_recon.cli:main',
            'reconstruction_node = lunar_stereo_recon.ros.reconstruction_node:main',
            'replay_node = lunar_stereo_recon.ros.replay_node:main',
            'recorder_node = lunar_stereo_recon.ros.recorder_node:main',
            'simulator_node = lunar_stereo_recon.ros.simulator_main:main',
            'terrain_node = lunar_stereo_recon.ros.terrain_node:main',
            'security_policy = lunar_stereo_recon.ros.security_policy:main',
            'camera_info_relay = lunar_stereo_recon.ros.camera_info_relay:main',
        ],
    },
)
