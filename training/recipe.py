"""A training run as data: one YAML file for each run, checked against these dataclasses.

A run is one recipe with a named list of students, which share the data and one forward pass of
the teacher. Unknown keys and wrong types are errors; `--set section.key=value` overrides single
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml

DATA_KINDS = ('rendered', 'on_the_fly', 'stereolunar')
STUDENT_KINDS = ('flight', 'lunar_teacher', 'mast3r', 'S1', 'S2', 'S3', 'S4')
TARGETS = ('ground_truth', 'teacher')
START_METHODS = ('random', 'shared_basis', 'truncate', 'direct')
# Not 'off', which YAML reads as a boolean.
AMP = ('none', 'bf16')
# What OmegaConf raises over a value; a whole number too large for a float it lets through.
_WRONG = (OmegaConfBaseException, OverflowError)
# Losses of the flight student that compare with the teacher.
TEACHER_TERMS = ('soft_bins', 'encoder_features', 'decoder_features')


@dataclass
class DataRecipe:
    """Where the pairs come from and how they are varied.

    Attributes:
        kind: 'rendered' (pairs of `lunar_stereo_recon.simulation.dataset`, or of
            `python -m training adapt`), 'on_the_fly' (the same, rendered in the loader processes
            while training goes on, never twice) or 'stereolunar' (folders of `.jpg`, `.exr`,
            `.npz`).
        train: Folders; none where pairs are rendered on the fly.
        max_pairs: Take only this many of the pairs in those folders, drawn by the run's seed; a
            smaller number takes a part of what a larger one takes. 0: all.
        replay: Rendered: folders of pairs that a student knows already and should not forget.
        replay_share: Share of the items that come from those folders.
        validation: Folder of full frames of this kind, never trained on; '' for none.
        crop_height, crop_width: Random crop, pixels; multiples of 32. StereoLunar views are
            scaled to cover it and cut about the centre.
        fixed_crops: Each pair is cut in only this many ways, and its light is not varied,
            so that a cache of teacher outputs serves every epoch; 0: a new crop each time.
        photometric: Vary the light and what cameras do to it on top of the rendered camera.
        max_vertical_offset_px: Largest random shift of the right rows, pixels.
        max_roll_deg: Largest random roll of the right view, degrees.
        max_row_bend_px: Some pairs' right rows bend by up to this instead; 0 for none.
        flipped_share: Share of the pairs that are turned upside down (lunar ones less often).
        mirrored_share: Share of the pairs with a right disparity that are mirrored.
        zoomed_share: Share of the pairs that are scaled.
        least_zoom, most_zoom: By what factors, as far as the crop fits.
        matches: Correspondences drawn a pair, for the matching loss; 0 for none.
        min_overlap: StereoLunar: pairs are left out where a smaller share of the left view is
            seen in the right one.
        max_frame_distance: StereoLunar: views further apart in the sequence make no pair.
        workers: Loader processes.
        max_unreadable_fraction: The run stops when more of the files than this cannot be read.
    """

    kind: str = 'rendered'
    train: list[str] = field(default_factory=list)
    max_pairs: int = 0
    replay: list[str] = field(default_factory=list)
    replay_share: float = 0.0
    validation: str = ''
    crop_height: int = 256
    crop_width: int = 384
    fixed_crops: int = 0
    photometric: bool = True
    max_vertical_offset_px: float = 0.4
    max_roll_deg: float = 0.05
    max_row_bend_px: float = 0.0
    flipped_share: float = 0.0
    mirrored_share: float = 0.0
    zoomed_share: float = 0.0
    least_zoom: float = 0.7
    most_zoom: float = 1.6
    matches: int = 0
    min_overlap: float = 0.3
    max_frame_distance: int = 1
    workers: int = 1
    max_unreadable_fraction: float = 0.01


@dataclass
class LossRecipe:
    """Weight of each loss of the flight student; 0 switches it off.

    Attributes:
        disparity: Full-resolution disparity.
        upsampled: Disparity at stride 2 before the correction there.
        coarse: Disparity at stride 4 after the correction there.
        first: Disparity at stride 4 before it.
        bins: Cross entropy of the aggregated bins.
        correlation: Cross entropy of the raw correlation, on pixels seen in both views.
        match: Cross entropy of the matching at stride 2, on pixels seen in both views.
        confidence: Likelihood of the error under its predicted size; sky counts as wrong.
        edge_weight: By how much pixels near a jump of the disparity count more than others.
        soft_bins: Divergence of the bins from the teacher's.
        photometric: How well the right view explains the left at the predicted disparity, where
            that is seen, bright enough and not far from its label; needs no label.
        encoder_features, decoder_features: Cosine-margin alignment with the teacher's tokens.
        feature_margin: Cosine from which a feature counts as aligned.
    """

    disparity: float = 1.0
    upsampled: float = 0.3
    coarse: float = 0.3
    first: float = 0.3
    bins: float = 0.5
    correlation: float = 0.3
    match: float = 0.3
    confidence: float = 0.3
    edge_weight: float = 0.0
    soft_bins: float = 0.0
    photometric: float = 0.0
    encoder_features: float = 0.0
    decoder_features: float = 0.0
    feature_margin: float = 0.9


@dataclass
class TeacherRecipe:
    """A frozen network that the students learn from.

    Attributes:
        checkpoint: '' for none; folder `checkpoint` of a run that trained a flight network (the
            lunar teacher) or a MASt3R; `.safetensors` that was exported from one; `.pth` or
            `.safetensors` of an official MASt3R, MOONSt3R.
        student: Name of the network in a checkpoint that holds several.
        cache: Folder where outputs are kept by content of network and images; '' for none.
        amp: 'none' or 'bf16'; the paper's teacher runs in full precision.
    """

    checkpoint: str = ''
    student: str = ''
    cache: str = ''
    amp: str = 'none'


@dataclass
class StartRecipe:
    """What a student's weights are before the first step.

    Attributes:
        method: How decoder and heads start: 'random', or from the teacher by 'shared_basis',
            'truncate' or 'direct' (see `training.start.svd_init`).
        mapping: Teacher blocks of the student's: 'uniform', 'last_k' or 'first_k'.
        ridge: Strength of the refit of 'shared_basis'.
        pairs: Training pairs whose tokens 'shared_basis' is fitted to.
        encoder: File of published encoder weights (DINOv2, ViT-Tiny, MobileNetV3); '' for none.
        checkpoint: Go on from a trained student, a checkpoint or `.safetensors`, whose
            configuration takes the place of kind and model; '' for none.
        grow_from: Flight: a trained student with fewer channels, whose function the convolutions
            start with; '' for none. A start of the decoder by `method` comes on top.
    """

    method: str = 'random'
    mapping: str = 'uniform'
    ridge: float = 0.1
    pairs: int = 4
    encoder: str = ''
    checkpoint: str = ''
    grow_from: str = ''


@dataclass
class StudentRecipe:
    """One student of a run.

    Attributes:
        kind: 'flight', 'lunar_teacher' (the same at a larger size), 'mast3r', or S1 to S4 of the
            paper.
        model: Overrides of its configuration.
        freeze_encoder: Train all but the encoder.
        anchor: Penalty for leaving the weights of `start.checkpoint`: this times the squared
            distance from them, over their own squared length.
        start: Weights before the first step.
        target: 'ground_truth' or 'teacher': whose disparities or pointmaps are learnt.
        ground_truth_points: Only this many pixels of each view's ground truth count: the
            strongest corners, as in a set of triangulated points; 0: all.
        min_confidence: Flight: the teacher's disparity counts where its confidence, in [0, 1],
            is at least this.
        losses: Losses of a flight student.
        distillation: Losses of others: overrides of `training.losses.distillation.LossWeights`.
    """

    kind: str = 'flight'
    model: dict[str, Any] = field(default_factory=dict)
    freeze_encoder: bool = False
    anchor: float = 0.0
    start: StartRecipe = field(default_factory=StartRecipe)
    target: str = 'ground_truth'
    ground_truth_points: int = 0
    min_confidence: float = 0.5
    losses: LossRecipe = field(default_factory=LossRecipe)
    distillation: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerRecipe:
    """AdamW with warm-up and cosine decay; each student has its own.

    Attributes:
        learning_rate: At the top of the schedule.
        final_fraction: Fraction of the learning rate, at the last step.
        beta2: Decay of the second moment.
        weight_decay: On matrices and kernels; norms, biases, scalars and projectors have none.
        warmup_steps, total_steps: Optimiser steps.
        batch_size: Pairs a step, over all processes.
        accumulate: Backward passes a step.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay of the averaged weights that are validated and exported.
        amp: 'none' or 'bf16': mixed precision.
    """

    learning_rate: float = 1e-3
    final_fraction: float = 0.01
    beta2: float = 0.98
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    total_steps: int = 4000
    batch_size: int = 4
    accumulate: int = 1
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    amp: str = 'none'


@dataclass
class Recipe:
    """A whole run.

    Attributes:
        name: Name of the run and of the exported model.
        seed: Of initial weights, crops and order.
        students: By name.
        comparisons: For `ablate`: groups of students that answer one question each, a table and
            a panel a group; none: all students in one.
    """

    name: str = 'flight'
    seed: int = 0
    data: DataRecipe = field(default_factory=DataRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    students: dict[str, StudentRecipe] = field(default_factory=dict)
    comparisons: dict[str, list[str]] = field(default_factory=dict)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    checkpoint_every: int = 250
    validate_every: int = 1000

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain values, as stored in checkpoints."""
        return asdict(self)

    def check(self) -> None:
        """Refuse values that no type can rule out.

        Raises:
            InputError: Names the value and the known ones, or the student that cannot be trained.
        """
        if not self.students:
            raise InputError('students is empty; a run needs at least one')
        _one_of('data.kind', self.data.kind, DATA_KINDS)
        if self.data.kind == 'on_the_fly':
            for key in ('train', 'max_pairs', 'fixed_crops'):
                if getattr(self.data, key):
                    raise InputError(f'data.{key} has no effect where data.kind is on_the_fly')
        self._check_replay()
        if self.data.max_pairs < 0:
            raise InputError(f'data.max_pairs is {self.data.max_pairs}; 0 or more is needed')
        _one_of('optimizer.amp', self.optimizer.amp, AMP)
        _one_of('teacher.amp', self.teacher.amp, AMP)
        for name, student in self.students.items():
            _one_of(f'students.{name}.kind', student.kind, STUDENT_KINDS)
            _one_of(f'students.{name}.target', student.target, TARGETS)
            _one_of(f'students.{name}.start.method', student.start.method, START_METHODS)
            if not 0 <= student.min_confidence <= 1:
                raise InputError(
                    f'students.{name}.min_confidence is {student.min_confidence}; a probability '
                    'is needed, in [0, 1]'
                )
            self._check_sparse(name, student)
            if student.anchor < 0 or (student.anchor and not student.start.checkpoint):
                raise InputError(
                    f'students.{name}.anchor is {student.anchor}; 0 or more is needed, and '
                    'start.checkpoint, whose weights hold it'
                )
            if not self.teacher.checkpoint:
                self._check_without_teacher(name, student)
        for group, names in self.comparisons.items():
            for name in names:
                _one_of(f'comparisons.{group}', name, list(self.students))

    def _check_replay(self) -> None:
        data = self.data
        if not 0 <= data.replay_share <= 1:
            raise InputError(f'data.replay_share is {data.replay_share}; a share in [0, 1] needed')
        if bool(data.replay) != (data.replay_share > 0):
            raise InputError(
                f'data.replay names {len(data.replay)} folders and data.replay_share is '
                f'{data.replay_share}; one has no effect without the other'
            )
        if data.replay and (data.kind != 'rendered' or data.max_pairs):
            raise InputError('data.replay is for data.kind rendered without data.max_pairs')

    @staticmethod
    def _check_sparse(name: str, student: StudentRecipe) -> None:
        points = student.ground_truth_points
        if points < 0:
            raise InputError(f'students.{name}.ground_truth_points is {points}; 0 or more needed')
        if points and student.target != 'ground_truth':
            raise InputError(
                f'students.{name}.ground_truth_points is {points}, but its target is '
                f'{student.target!r}'
            )

    def _check_without_teacher(self, name: str, student: StudentRecipe) -> None:
        needs = {
            'target': student.target == 'teacher',
            'start.method': student.start.method != 'random',
            **{f'losses.{term}': getattr(student.losses, term) > 0 for term in TEACHER_TERMS},
        }
        for key, needed in needs.items():
            if needed:
                raise InputError(
                    f'students.{name}.{key} needs a teacher, but teacher.checkpoint is empty'
                )


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f'{key} is {value!r}; known: {", ".join(known)}')


def recipe_from_values(values: dict[str, Any]) -> Recipe:
    """Return a recipe from plain values, as `Recipe.as_dict` gives them; absent ones as default.

    Raises:
        InputError: A key or type is wrong; says which.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.create(values))
        recipe: Any = OmegaConf.to_object(merged)
    except _WRONG as error:
        raise InputError(f'stored recipe: {error}') from error
    return recipe


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings, applied last.

    Raises:
        InputError: The file is missing, or a key, type or value is wrong; says which.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Recipe),
            OmegaConf.create(read_yaml(Path(path)) or {}),
            OmegaConf.from_dotlist(list(overrides)),
        )
        recipe: Any = OmegaConf.to_object(merged)
    except (OSError, yaml.YAMLError, *_WRONG) as error:
        raise InputError(f'recipe {path}: {error}') from error
    recipe.check()
    return recipe
