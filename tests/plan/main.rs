//! What a plan promises: the whole objects of every sample, the Pod Security Standards for any sandbox, exactly the
//! mounts and the rules that were asked for, and no way to the outside in the code that makes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod any;
mod names;
mod properties;
mod purity;
mod restricted;
mod samples;
mod schema;
