"""DICOM in and out: series, multi-frame objects and video; SEG, RTSTRUCT, Parametric Map, structured report."""
