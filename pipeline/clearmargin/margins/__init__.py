"""What is promised of a prediction: margins of safety, calibration, thresholds on misses, referral, drift."""
