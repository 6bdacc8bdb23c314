//! The egress gateway: the only way out of a sandbox by name. See `docs/design/0007-egress.md`.
mod client_hello;
mod http;
mod limits;
mod refusal;
mod request;
mod sniff;
mod sources;
