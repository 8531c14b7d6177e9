"""VGG16 up to conv5_3: features at a sixteenth of the canvas."""

from jaxtyping import Float
from torch import Tensor, nn

from rcnn.models.initial import initialise
from rcnn.models.layers import convolve, convolve_and_pool, convolve_pictures

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The thirteen convolutions of configuration D, named conv1_1 to conv5_3, without the last pooling.

    Source: Simonyan and Zisserman 2015, table 1; used as in Faster R-CNN 3.
    """

    channels = 512
    stride = 16

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for stage, widths in enumerate(STAGES, start=1):
            for i, width in enumerate(widths, start=1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        initialise(self)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 512 h w"]:
        x = convolve_pictures(x, self.get_submodule("conv1_1"), self.get_submodule("conv1_2"))
        for stage, widths in enumerate(STAGES[1:], start=2):
            *others, last = (self.get_submodule(f"conv{stage}_{i}") for i in range(1, len(widths) + 1))
            for conv in others:
                x = convolve(x, conv, relu=True)
            x = convolve_and_pool(x, last) if stage < len(STAGES) else convolve(x, last, relu=True)
        return x
