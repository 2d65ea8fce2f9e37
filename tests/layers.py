"""How many weights the ResNet-50 of the papers has, and a pyramid on it: from the layer lists, not from the code."""


def conv(inputs, outputs, size=3, bias=True):
    return inputs * outputs * size**2 + (outputs if bias else 0)


def normed(inputs, outputs, size=3):
    """A convolution without bias and a GroupNorm's scale and shift, as all of our pyramid's are."""
    return conv(inputs, outputs, size, bias=False) + 2 * outputs


def backbone():
    """He et al., CVPR 2016, table 1, without the classifier; its frozen BatchNorms have nothing to learn."""
    count, inputs = conv(3, 64, 7, bias=False), 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            count += (
                conv(inputs, width, 1, False)
                + conv(width, width, 3, False)
                + conv(width, 4 * width, 1, False)
            )
            if block == 0:
                count += conv(inputs, 4 * width, 1, bias=False)  # of the shortcut
            inputs = 4 * width
    return count


def pyramid(inputs, width=256):
    """A 1 x 1 convolution of each of the backbone's maps, and a 3 x 3 of each sum."""
    return sum(normed(channels, width, 1) + normed(width, width) for channels in inputs)
