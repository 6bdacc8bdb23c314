//! Records of what a sandbox did and what the operator did with it: OCSF 1.8 JSON lines.
