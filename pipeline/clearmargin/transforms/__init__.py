"""MONAI in, MONAI out: tensors with geometry, label layers, intensity, one spatial resampling."""
