"""What a calibration is worth on cases that it was not fitted on."""
