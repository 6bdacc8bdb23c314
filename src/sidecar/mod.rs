//! The native sidecar of every sandbox: start gate and audit intake.
