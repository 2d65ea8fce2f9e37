"""Archives: where series come from and results go to, by DICOMweb."""
