"""From a plan to results: prepare, check, sample in turn, account; manifests and replay."""
