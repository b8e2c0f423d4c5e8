"""What recipes set of images and videos."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imp_ds.records import Record

_Count = Annotated[int, Field(ge=1)]


class VisionView(Record):
    """How a task sees images and videos. `frames` 1 is an image; `drop_rate` is the share of tokens dropped in training
    (DropToken, VATT, arXiv 2104.11178): uniformly at random, true coordinates kept."""

    frames: int = Field(1, ge=1, description="frames of a clip, drawn uniformly over the video; 1 for an image")
    height: int = Field(256, ge=1, description="pixels")
    width: int = Field(256, ge=1, description="pixels")
    drop_rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of tokens dropped in training")
    sampling: Literal["uniform", "stride", "clip"] = Field(
        "uniform",
        description="frames of a video: spread over all of it; every stride-th from its beginning; or every stride-th of a clip, "
        "which is random in training and the middle in evaluation",
    )
    stride: int = Field(1, ge=1, description="frames from one to the next, under stride and clip")
    keep_aspect: bool = Field(
        False, description="keep the picture's aspect ratio: its own grid of as many patches as height x width has"
    )
    naflex: bool = Field(
        False,
        description="keep the picture's aspect ratio, and all of its patches: the largest grid within as many as height x width "
        "has; what is left of them is padding that nothing sees",
    )

    @model_validator(mode="after")
    def _has_one_grid(self):
        if self.naflex and self.keep_aspect:
            raise ValueError("naflex and keep_aspect are two ways to keep the aspect ratio; set one")
        return self

    @property
    def own_aspect(self) -> bool:
        """Whether each picture has the grid of its own aspect ratio."""
        return self.keep_aspect or self.naflex


class VisionOptions(Record):
    """Sizes of a model that sees."""

    patch: tuple[_Count, _Count, _Count] = Field((4, 16, 16), description="frames, height, width of a patch")
    max: tuple[_Count, _Count, _Count] = Field((64, 512, 512), description="the largest clip, same units")
    positions: Literal["factored", "table"] = Field(
        "factored", description="a table for each axis; or one for all rows and columns, as a ViT has, and one for steps"
    )
    registers: int = Field(0, ge=0, description="learned tokens before the patches: a ViT's class token, and registers")
    norm: bool = Field(False, description="a norm of patches and registers before the encoder, as CLIP has")


class VisionAugmentation(Record):
    """What training changes at random in pictures. The defaults change nothing.

    IMP crops (0.5 to 1 of the area) and mirrors and recolours where captions do not speak of it (release, `config/data.py`).
    """

    crop_area: tuple[float, float] | None = Field(None, description="share of the picture's area that a random crop keeps")
    crop_aspect: tuple[float, float] = Field((0.5, 2.0), description="aspect ratios of the crop, relative to the view's")
    flip: bool = Field(False, description="mirror half of the pictures, left and right")
    colour: float = Field(0.0, ge=0.0, le=1.0, description="largest relative change of brightness, contrast and saturation")
