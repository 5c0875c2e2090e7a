"""Files in and out: calibrations, images, manifests, results, rigs."""
