//! `agentsandbox render`: the objects of a sandbox, or the refusals, without a cluster.
