"""What published pre-activation ResNets have that timm's has not."""

from torch import Tensor, nn


class RawShortcut(nn.Module):
    """A basic block of timm whose shortcut takes the block's input, not the activated one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm2(self.conv1(self.norm1(x)))) + self.downsample(x)


def raw_shortcuts(net: nn.Module) -> None:
    """Gives each block of `net` that changes width such a shortcut, in place."""
    for stage in net.stages:
        for name, block in stage.blocks.named_children():
            if block.downsample is not None:
                setattr(stage.blocks, name, RawShortcut(block))


def pad_right(net: nn.Module) -> None:
    """Has each strided 3x3 convolution of `net`, in place, pad on the right and below alone, as
    TensorFlow and JAX do for images of an even size."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride[0] > 1 and child.kernel_size[0] == 3:
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))
