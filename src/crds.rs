//! Custom resource definitions as YAML, generated from the types in `api`.
