"""The paper's students S1 to S4: a small encoder in front of MASt3R's decoder and heads.

Names and sizes are those of the paper's checkpoints (arXiv 2607.01851), down to the parameters
that the shell keeps and never reads: its patch embedding, encoder norm and mask token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lunar_stereo_recon.errors import ModelError
from training.models.encoders import AdaptedEncoder, encoder_spec
from training.models.heads import HeadConfig
from training.models.mast3r import Mast3r, Mast3rConfig


@dataclass(frozen=True)
class PaperStudentConfig:
    """Encoder and decoder of a student; the heads follow from the decoder.

    Attributes:
        encoder: A name of `encoders.ENCODERS`.
        decoder_width, decoder_depth, decoder_heads, mlp_ratio: The cross-view decoder.
        head: Sizes of the two dense heads.
    """

    encoder: str
    decoder_width: int = 512
    decoder_depth: int = 6
    decoder_heads: int = 4
    mlp_ratio: float = 1.0
    head: HeadConfig = field(default_factory=HeadConfig)


PAPER_STUDENTS: dict[str, PaperStudentConfig] = {
    'S1': PaperStudentConfig('mobilenetv3_large'),
    'S2': PaperStudentConfig('dinov2_vits14'),
    'S3': PaperStudentConfig('dinov2_vits14', decoder_width=256, decoder_depth=4),
    'S4': PaperStudentConfig('vit_tiny_patch16'),
}


def paper_student_config(name: str) -> PaperStudentConfig:
    """Return the configuration of S1, S2, S3 or S4.

    Raises:
        ModelError: No student has this name.
    """
    if name not in PAPER_STUDENTS:
        raise ModelError(f'student is {name!r}; known are {", ".join(PAPER_STUDENTS)}')
    return PAPER_STUDENTS[name]


class PaperStudent(Mast3r):
    """MASt3R's decoder and heads on the tokens of a small encoder; called like `Mast3r`."""

    def __init__(self, student: PaperStudentConfig) -> None:
        spec = encoder_spec(student.encoder)
        super().__init__(
            Mast3rConfig(
                encoder_width=student.decoder_width,
                encoder_depth=0,
                encoder_heads=student.decoder_heads,
                decoder_width=student.decoder_width,
                decoder_depth=student.decoder_depth,
                decoder_heads=student.decoder_heads,
                mlp_ratio=student.mlp_ratio,
                head=student.head,
            )
        )
        self.student = student
        self.spec = spec
        self.add_module(spec.module_name, AdaptedEncoder(spec, student.decoder_width))
        for unused in (self.patch_embed, self.enc_norm):
            unused.requires_grad_(False)

    @property
    def encoder(self) -> AdaptedEncoder:
        """Return the encoder with its adapter."""
        module = self.get_submodule(self.spec.module_name)
        assert isinstance(module, AdaptedEncoder)
        return module

    def encode_view(self, image: Tensor) -> Tensor:
        """Return encoder tokens (B, H/16 * W/16, C) of images (B, 3, H, W) in [0, 1]."""
        return self.encoder(image)

    def positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return (h * w, 2) integer positions of a token grid (h, w), in the encoder's order."""
        rows_columns = super().positions(grid, device)
        return rows_columns.flip(-1) if self.spec.column_first else rows_columns
