"""De-identification of DICOM files by the Basic Profile of PS3.15, Annex E; knows no torch."""
