//! Addresses and digests: the pure part of the egress decision.
