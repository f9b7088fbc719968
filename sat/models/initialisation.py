"""How a network's weights begin, where published code does otherwise than timm."""

from typing import Literal

from torch import nn

# timm: convolutions normal by fan-out, the last scale of each block 0. torch: each layer's own.
# fan_out: convolutions normal by fan-out, batch norms 1 and 0 (torchvision's ResNet; of a wide one,
# as Zagoruyko's, the classifier's bias is 0, too). goyal: timm's, but for the classifier, whose
# weights are normal of deviation 0.01 (Goyal et al. 2017).
Init = Literal["timm", "torch", "fan_out", "goyal"]


def initialise(net: nn.Module, init: Init, zero_bias: bool = False) -> nn.Module:
    """Draws the weights of `net` anew as `init` says, in place."""
    if init == "goyal":
        nn.init.normal_(net.get_classifier().weight, std=0.01)
        nn.init.zeros_(net.get_classifier().bias)
    if init in ("timm", "goyal"):
        return net
    classifier = net.get_classifier() if hasattr(net, "get_classifier") else None
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        # A classifier that is a 1x1 convolution (timm's ResNetV2) begins as a linear one does.
        if init == "fan_out" and isinstance(module, nn.Conv2d) and module is not classifier:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if init == "fan_out" and isinstance(module, nn.Linear | nn.Conv2d) and zero_bias:
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
